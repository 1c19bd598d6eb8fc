"""llama-perplexity's base file: its arithmetic, its bytes, and what is refused."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import perplexity_base
import pytest

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import log_softmax

RNG = np.random.default_rng(0)


def logits(rows: int, vocabulary: int) -> npt.NDArray[np.float32]:
    return RNG.normal(0, 8, (rows, vocabulary)).astype(np.float32)


def test_golden_bytes(tmp_path: Path) -> None:
    """Two tokens as likely, one 8 nats below, one 20 below, which is cut off at 16."""
    row = np.array([[0, 0, -8, -20]], dtype=np.float32)
    perplexity_base.write(tmp_path / "base", [[3, 1, 2, 0]], 4, [[row]])
    written = (tmp_path / "base").read_bytes()
    assert written[:8] == b"_logits_"
    assert np.frombuffer(written[8:36], "<i4").tolist() == [4, 4, 1, 3, 1, 2, 0]
    scale, smallest = np.frombuffer(written[36:44], "<f4")
    assert scale == np.float32(16) / np.float32(65535)
    assert smallest == pytest.approx(-16 - np.log(2 + np.exp(-8)), abs=1e-5)
    assert np.frombuffer(written[44:], "<u2").tolist() == [65535, 65535, 32768, 0]


@pytest.mark.parametrize("vocabulary", [6, 7])
def test_what_is_written_is_read_to_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: int
) -> None:
    monkeypatch.setattr(perplexity_base, "PIECE_BYTES", 4 * vocabulary * 3)  # a chunk of 4 rows is two pieces
    told = [logits(9 - 1 - 4, vocabulary) for _ in range(3)]
    chunks = RNG.integers(0, vocabulary, (3, 9)).tolist()
    perplexity_base.write(tmp_path / "base", chunks, vocabulary, ([rows[:2], rows[2:]] for rows in told))
    tokens, found = perplexity_base.read(tmp_path / "base")
    assert tokens.tolist() == chunks
    for rows, pieces in zip(told, found, strict=True):
        back = np.concatenate(list(pieces))
        exact = log_softmax(rows)
        near = exact > exact.max(axis=1, keepdims=True) - 16
        assert np.abs(back - exact)[near].max() <= 0.51 * 16 / 65535
        assert (back[~near] <= (exact.max(axis=1, keepdims=True) - 15.99).repeat(vocabulary, 1)[~near]).all()


def test_equal_logits_have_no_scale() -> None:
    codes = perplexity_base.encode(np.zeros((1, 4), dtype=np.float32))
    assert perplexity_base.decode(codes, 4)[0] == pytest.approx(np.log([0.25] * 4), abs=1e-6)


def test_prompt_of_a_chunk() -> None:
    """Position n_ctx / 2 is the first that llama-perplexity looks at; it chooses the token after it."""
    assert perplexity_base.prompt_of(256) == 129


def test_what_is_no_base_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base"
    perplexity_base.write(path, [[0, 1, 2, 3]], 4, [[logits(1, 4)]])
    whole = path.read_bytes()
    for wrong in (
        whole[:-1],
        whole + b"\0",
        b"_logitz_" + whole[8:],
        whole[:10],
        whole[:8] + b"\xff" * 12 + whole[20:],
    ):
        path.write_bytes(wrong)
        with pytest.raises(EdgeSteerError, match="no whole base file"):
            perplexity_base.read(path)
    with pytest.raises(EdgeSteerError, match="all of one length"):
        perplexity_base.write(path, [[0, 1, 2, 3], [0, 1]], 4, [])
    with pytest.raises(EdgeSteerError, match="lacks 1 rows"):
        perplexity_base.write(path, [[0, 1, 2, 3]], 4, [[]])
    with pytest.raises(EdgeSteerError, match="vocabulary of 4"):
        perplexity_base.write(path, [[0, 1, 2, 3]], 4, [[logits(1, 5)]])
