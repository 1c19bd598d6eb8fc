"""What the reference says, saved and read again: the same as live, as far as llama-perplexity counts it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.parity import saved as parity_saved
from edge_steer.parity.baseline import LiveReference
from edge_steer.parity.compare import compare_backend
from edge_steer.parity.measure import measure_positions
from edge_steer.parity.saved import CUT, SavedReference, save
from edge_steer.parity.texts import EFFECT_POSITIONS, TokenisedText
from edge_steer.parity.tolerances import tolerance_of
from edge_steer.reference.model import Reference


@pytest.fixture(scope="module")
def steering(bundled_vector: SteeringVector) -> list[Steering]:
    return [Steering(bundled_vector, 0.325, (3,))]


@pytest.fixture(scope="module")
def live(bundled: Reference, steering: Sequence[Steering]) -> LiveReference:
    prompt = bundled.chat([{"role": "user", "content": "Mia has 3 apples and buys 4. How many has she?"}])
    texts = [TokenisedText(prompt + bundled.encode(answer, start=False), len(prompt)) for answer in
             ("Mia has 3 apples.\n\nShe buys 4, so she has 7.", "She has 3 + 4 = 7.", "")]  # fmt: skip
    return LiveReference(bundled, texts, texts[:1], steering)


@pytest.fixture(scope="module")
def path(live: LiveReference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "reference"
    save(path, live, {"name": "abacus"}, {"1": [{"task": "t"}]})
    return path


def test_a_saved_reference_says_the_same(live: LiveReference, path: Path) -> None:
    saved = SavedReference(path)
    assert (saved.model, saved.source, saved.answers) == (live.model, {"name": "abacus"}, {"1": [{"task": "t"}]})
    assert saved.steering == live.steering
    assert saved.exact_backend is None
    assert (list(saved.unsteered), list(saved.steered)) == (live.unsteered, live.steered)
    for index, steered in ((0, False), (1, False), (0, True)):
        text = (live.steered if steered else live.unsteered)[index]
        ours, theirs = ([np.concatenate(parts) for parts in zip(*side.rows(index, steered), strict=True)]
                        for side in (live, saved))  # fmt: skip
        assert (ours[1] == theirs[1]).all()
        kept = np.isfinite(theirs[0])
        assert (ours[0][kept] == theirs[0][kept]).all()
        likely = ours[0] > ours[1][:, None] + CUT
        chosen = np.zeros_like(likely)
        chosen[np.arange(len(text.following)), text.following] = True
        assert (kept == likely | chosen).all()
        assert not kept.all()
    one, other = live.effect(0), saved.effect(0)
    assert (one.logits == other.logits).all()
    assert (one.states == other.states).all()
    assert (one.at_first_block == other.at_first_block).all()
    assert one.logits.shape[0] == EFFECT_POSITIONS


def test_texts_without_a_token_to_compare_on_are_left_out(live: LiveReference, bundled: Reference) -> None:
    assert len(live.unsteered) == 2
    with pytest.raises(EdgeSteerError, match="no texts to compare on"):
        LiveReference(bundled, [TokenisedText((5, 6), 2)], (), ())


def test_a_file_is_compared_with_a_saved_reference_as_with_a_live_one(
    live: LiveReference, path: Path, bundled_f16: Path, steering: Sequence[Steering]
) -> None:
    with Engine.load(bundled_f16, EngineOptions(threads=1)) as engine:
        for steered in (False, True):
            given = steering if steered else ()
            ours, theirs = (
                measure_positions(side, engine, given, steered=steered) for side in (live, SavedReference(path))
            )
            for one, other in zip(ours, theirs, strict=True):
                assert one.kl == pytest.approx(other.kl, abs=1e-6)
                assert (one.nll == other.nll).all()
                assert one.delta_p == pytest.approx(other.delta_p, abs=1e-9)
        report = compare_backend(SavedReference(path), engine, steering, "F16", tolerance_of("F16"))
    assert report.effect
    assert report.effect.cosine > 0.999
    assert not report.mechanism


def test_a_text_is_read_in_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece is valid until the next, which takes its place in memory."""
    saved = SavedReference(path)
    [(whole, totals)] = saved.rows(0, False)
    monkeypatch.setattr(parity_saved, "PIECE_BYTES", 4 * whole.shape[1] * 5)
    pieces = [(rows.copy(), total) for rows, total in saved.rows(0, False)]
    assert [len(rows) for rows, _ in pieces[:-1]] == [5] * (len(pieces) - 1)
    assert len(pieces) > 2
    assert np.array_equal(np.concatenate([rows for rows, _ in pieces]), whole)
    assert np.array_equal(np.concatenate([total for _, total in pieces]), totals)


def test_what_is_no_saved_reference_is_refused(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    wrong = tmp_path / "wrong"
    for data, said in (
        (b"GGUF" + whole, "no saved reference"),
        (whole[:-1], "cut off"),
        (whole[:200], "its header"),
        (whole + (3).to_bytes(8, "little") + b"abc", "blocks"),
    ):
        wrong.write_bytes(data)
        with pytest.raises(EdgeSteerError, match=said):
            SavedReference(wrong)
    first = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for place in (16, 19, 20):
        broken = bytearray(whole)
        broken[first + place] ^= 1  # the count of the first row, then the bits that say which tokens it has
        wrong.write_bytes(broken)
        with pytest.raises(EdgeSteerError, match="is damaged: a row"):
            list(SavedReference(wrong).rows(0, False))
