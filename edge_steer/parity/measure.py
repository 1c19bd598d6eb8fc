"""One file measured against the reference, text by text and case by case, so that a stopped run goes on.

Takes a Baseline, another Backend, what steers it, and a Store that keeps each piece once it is measured; gives the
figures of the texts and the rows of the mechanism. It judges nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from edge_steer.core.backend import Backend
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.stats import Floats
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Array, Phase
from edge_steer.parity.baseline import EFFECT_TEXTS, Baseline, Piece, SteeredTexts
from edge_steer.parity.divergence import Divergence, Positions, compare_logits, summarise
from edge_steer.parity.effect import Effect, effect_products, summarise_effect
from edge_steer.parity.mechanism import OF_EVERY_TEXT, MechanismRow, everywhere, mechanism, rounding
from edge_steer.parity.texts import TokenisedText
from edge_steer.storage.records import Store

MECHANISM_PROMPT, MECHANISM_FOLLOWING = 16, 16  # most tokens of the one text that the mechanism is checked on
_NO_PIECE: Piece = (np.empty((0, 0), dtype=np.float32), np.empty(0))


@dataclass(frozen=True)
class TextFigures:
    """What is measured on texts. steered, effect: None without a steering."""

    unsteered: Divergence
    steered: Divergence | None
    effect: Effect | None


@dataclass(frozen=True)
class MechanismCase:
    """Where and how the mechanism is checked. steering: its number among several."""

    steering: int
    layer: int
    phase: Phase
    strength: float


def measure_texts(
    baseline: Baseline,
    other: Backend,
    steering: Sequence[Steering],
    *,
    store: Store | None = None,
    progress: Progress = SILENT,
) -> TextFigures:
    """The figures of every text of the baseline in another backend; what the store holds is not measured again."""
    sides = {False: baseline.unsteered, True: baseline.steered if steering else ()}
    effect_texts = sides[True][:EFFECT_TEXTS]
    theirs = SteeredTexts(other, steering, effect_texts, baseline.steering)
    records = {(r["index"], r["steered"]): r for r in (store.records if store else ()) if "positions" in r}
    # a text's two sides follow each other: what is recorded of them is its effect
    longest = max(map(len, sides.values()))
    keys = [(index, side) for index in range(longest) for side, texts in sides.items() if index < len(texts)]
    for index, side in progress.counted("comparing texts", keys):
        if (index, side) in records:
            continue
        text = sides[side][index]
        compared = compare_text(baseline.rows(index, side), theirs.rows(text, steered=side), text)
        record = {"index": index, "steered": side, "positions": compared.record()}
        if side and index < len(effect_texts):
            record["effect"] = effect_products(baseline.effect(index), theirs.effect(text))
        records[index, side] = record
        if store:
            store.append(record)
    unsteered, steered = (
        [Positions.of(records[index, side]["positions"]) for index in range(len(texts))]
        for side, texts in sides.items()
    )
    products = [records[index, True]["effect"] for index in range(len(effect_texts))]
    return TextFigures(
        unsteered=summarise(unsteered),
        steered=summarise(steered) if steered else None,
        effect=summarise_effect(products, effect_texts) if products else None,
    )


def measure_positions(
    baseline: Baseline, other: Backend, steering: Sequence[Steering], *, steered: bool
) -> list[Positions]:
    """A few numbers for each position of the baseline's unsteered or steered texts, text by text."""
    return [
        compare_text(baseline.rows(index, steered), other.logit_rows(text.tokens[:-1], text.prompt, steering), text)
        for index, text in enumerate(baseline.steered if steered else baseline.unsteered)
    ]


def compare_text(ours: Iterator[Piece], theirs: Iterator[Array], text: TokenisedText) -> Positions:
    """One text from the logits of both sides, which come in pieces: memory does not grow with its length."""
    following = text.following
    parts: list[Positions] = []
    for logits, total, others in _together(ours, theirs):
        parts.append(compare_logits(logits, total, others, following[: len(logits)]))
        following = following[len(logits) :]
    return Positions.joined(parts)


def measure_mechanism(
    baseline: Baseline,
    other: Backend,
    steering: Sequence[Steering],
    *,
    store: Store | None = None,
    progress: Progress = SILENT,
) -> tuple[MechanismRow, ...]:
    """Every block of the model, on a short text; nothing without a steering or a running reference.

    A layer the vector lacks is steered by the direction of its nearest. Phase "delimiter" is checked where it is used.
    """
    if baseline.exact_backend is None:
        return ()
    stored = [record for record in (store.records if store else ()) if "case" in record]
    rows = {MechanismCase(**record["case"]): MechanismRow(**record["row"]) for record in stored}
    vectors = [everywhere(one.vector, baseline.model.block_count) for one in steering]
    cases = list(_cases(baseline, steering))
    units: dict[tuple[TokenisedText, int], float | None] = {}
    for text, case in progress.counted("checking the mechanism", cases):
        if case in rows:
            continue
        [rows[case]] = mechanism(
            baseline.exact_backend, other, vectors[case.steering], [text],
            layers=[case.layer], strengths=[case.strength], phases=[case.phase],
        )  # fmt: skip
        if (unit := (text, case.steering)) not in units:
            units[unit] = rounding(baseline.exact_backend, text, steering[case.steering])
        rows[case] = replace(rows[case], rounding=units[unit])
        if store:
            store.append({"case": asdict(case), "row": asdict(rows[case])})
    return tuple(rows[case] for _, case in cases)


def _cases(baseline: Baseline, steering: Sequence[Steering]) -> Iterator[tuple[TokenisedText, MechanismCase]]:
    """Each block in each phase at both signs, the first also unsteered; with the text it is checked on."""
    texts = baseline.steered or baseline.unsteered
    by_phase = dict.fromkeys(OF_EVERY_TEXT, texts[0].shortened(MECHANISM_PROMPT, MECHANISM_FOLLOWING))
    if delimited := next((text for text in texts if text.delimiters), None):
        by_phase["delimiter"] = delimited.to_delimiters
    for number, one in enumerate(steering):
        for block in range(baseline.model.block_count):
            for phase, text in by_phase.items():
                for strength in sorted({0.0, one.strength, -one.strength}):
                    if strength or block == 0:
                        yield text, MechanismCase(number, block, phase, strength)


def _together(ours: Iterator[Piece], theirs: Iterator[Array]) -> Iterator[tuple[Array, Floats, Array]]:
    """Two streams cut into pieces of the same rows. The next piece of a stream is taken when the last is used up."""
    logits, total = next(ours, _NO_PIECE)
    while len(logits):
        other = next(theirs)
        while len(other):
            if not len(logits):
                logits, total = next(ours)
            count = min(len(logits), len(other))
            yield logits[:count], total[:count], other[:count]
            logits, total, other = logits[count:], total[count:], other[count:]
        if not len(logits):
            logits, total = next(ours, _NO_PIECE)
