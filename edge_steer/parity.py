"""The quantised engine against the reference: the same token ids through both, their distributions compared.

Takes what the reference says of its texts (live or saved, see baseline.py) and another Backend; gives how far the
next-token probabilities are apart, whether steering moves them alike, for an exact file whether it is added at the
same place, and a verdict. It loads nothing and prints nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_steer import pairs
from edge_steer.architectures import HALF_GELU
from edge_steer.backend import Backend
from edge_steer.baseline import EFFECT_TEXTS, Baseline, Live, Piece, Text, first_layer, shift
from edge_steer.divergence import Divergence, Positions, compare, over_texts, summarise
from edge_steer.errors import EdgeSteerError, ModelError
from edge_steer.files import read_lines
from edge_steer.mechanism import MechanismRow, everywhere, mechanism
from edge_steer.stats import Floats, Interval
from edge_steer.tolerances import (
    KL_FLOOR,
    MECHANISM,
    MIN_POSITIONS,
    PLACED,
    RESIDUAL,
    TOLERANCES,
    Finding,
    Tolerance,
    Verdict,
    finding,
    overall,
    tolerance_of,
)
from edge_steer.vector import Array, Steering

Progress = Callable[[str, int, int], None]  # what is being done, how much is done, of how much

MECHANISM_TEXTS = 1
EXACT = "F32"  # the type whose mechanism is checked
_NO_PIECE: Piece = (np.empty((0, 0), dtype=np.float32), np.empty(0))
KL_TOLERANCE = {quant: tolerance.kl for quant, tolerance in TOLERANCES.items()}


@dataclass(frozen=True)
class Effect:
    """What steering does, (steered - unsteered), in the other backend against the reference.

    cosine and norm, its relative length, with intervals over texts: of the logits and of the residual stream after
    the last block, at some positions of some texts. placed_*: of the residual stream after the first steered block,
    which is what was added there, and so is the same in a quantised model.
    """

    texts: int
    positions: int
    cosine: float
    cosine_interval: Interval | None
    norm: float
    norm_interval: Interval | None
    placed_cosine: float
    placed_norm: float
    residual_cosine: float
    residual_cosine_interval: Interval | None
    residual_norm: float
    residual_norm_interval: Interval | None


@dataclass(frozen=True)
class Report:
    """What `check` found of one file. mechanism is empty but for an F32 file; the last three are None unsteered.

    kl_ratio: median KL of the steered texts over that of the unsteered, each at least KL_FLOOR; mean_ratio: the ratio
    of the means, None where rounding is all there is. Does quantising hurt steering more than it hurts the model?
    """

    quant: str
    tolerance: Tolerance
    mechanism: list[MechanismRow]
    unsteered: Divergence
    steered: Divergence | None
    effect: Effect | None
    kl_ratio: float | None
    mean_ratio: float | None
    findings: list[Finding]

    @property
    def verdict(self) -> Verdict:
        return overall([found.verdict for found in self.findings])

    @property
    def passed(self) -> bool:
        """Whether nothing is out of tolerance; too little data to say so is no failure."""
        return self.verdict != "fail"


def read_texts(path: Path, backend: Backend) -> list[Text]:
    """Texts from a JSONL of pairs (question as prompt, negative as answer) or plain text, one a line.

    Errors: EdgeSteerError for an empty or unreadable file.
    """
    if path.suffix == ".jsonl":
        return [answered(backend, pair.question, pair.negative) for pair in pairs.read(path)]
    lines = read_lines(path, "texts: pairs as .jsonl, or plain text with one text a line")
    return [Text(backend.encode(line), 1) for line in lines]


def answered(backend: Backend, question: str, answer: str) -> Text:
    """The text of a question in the chat template followed by its answer."""
    prompt = backend.chat([{"role": "user", "content": question}])
    return Text(prompt + backend.encode(answer, start=False), len(prompt))


def check(
    reference: Backend,
    other: Backend,
    texts: Sequence[Text],
    steering: Sequence[Steering],
    quant: str,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """`against` a live reference, with the same texts unsteered and steered.

    tolerance: allowed mean KL; None is that of the quant. Errors: EdgeSteerError for a quant without one.
    """
    changes = {} if tolerance is None else {"kl": tolerance}
    return against(
        Live(reference, texts, texts if steering else (), steering),
        other,
        steering,
        quant,
        tolerance_of(quant, changes),
        progress=progress,
    )


def against(
    baseline: Baseline,
    other: Backend,
    steering: Sequence[Steering],
    quant: str,
    tolerance: Tolerance,
    *,
    progress: Progress | None = None,
) -> Report:
    """Everything that is asked of one file.

    steering: what `other` is steered with; the baseline has its own. The mechanism is checked of an F32 file where
    the reference is at hand. Errors, before anything is computed: EdgeSteerError for another model, one that
    cannot be steered, or an F32 file that llama.cpp does not compute exactly.
    """
    report = progress or (lambda *_: None)
    if baseline.model.block_count != other.model.block_count or baseline.model.hidden_size != other.model.hidden_size:
        raise EdgeSteerError(f"the file holds {other.model}, the reference {baseline.model}; compare the same model")
    other.check_steering(steering)
    check_exact(quant, other.model.architecture)
    rows: list[MechanismRow] = []
    if quant == EXACT and isinstance(baseline, Live):
        for one in steering:
            rows += _mechanism(baseline, other, one, report)
    unsteered = summarise(positions(baseline, other, (), steered=False, progress=report))
    steered = effect = kl_ratio = mean_ratio = None
    if steering and baseline.steered:
        steered = summarise(positions(baseline, other, steering, steered=True, progress=report))
        effect = effect_of(baseline, other, steering, report)
        medians, means = ([d.kl[key] for d in (steered, unsteered)] for key in ("median", "mean"))
        kl_ratio = max(medians[0], KL_FLOOR) / max(medians[1], KL_FLOOR)
        mean_ratio = means[0] / means[1] if min(means) > 0 else None
    found = _findings(tolerance, rows, unsteered, steered, effect, kl_ratio)
    return Report(quant, tolerance, rows, unsteered, steered, effect, kl_ratio, mean_ratio, found)


def check_exact(quant: str, architecture: str | None) -> None:
    """Errors: ModelError for an F32 file that llama.cpp does not compute to the tolerances of one."""
    if quant == EXACT and architecture in HALF_GELU:
        raise ModelError(
            f"llama.cpp reads the GELU of {architecture} from a table of float16, which moves the logits of an {EXACT} "
            "file more than its tolerances allow; compare an F16 file"
        )


def distribution(
    reference: Backend, other: Backend, texts: Sequence[Text], steering: Sequence[Steering] = ()
) -> Divergence:
    """How far `other` is from `reference` on texts under a steering. Errors: EdgeSteerError for no texts."""
    live = Live(reference, texts, texts, steering)
    return summarise(positions(live, other, steering, steered=bool(steering)))


def positions(
    baseline: Baseline,
    other: Backend,
    steering: Sequence[Steering],
    *,
    steered: bool,
    progress: Progress | None = None,
) -> list[Positions]:
    """What is kept of each position of the baseline's unsteered or steered texts, text by text.

    Logits come in pieces: memory grows neither with the texts nor with their length.
    """
    texts = baseline.steered if steered else baseline.unsteered
    found = []
    for index, text in enumerate(texts):
        if progress:
            progress(f"comparing {'steered' if steered else 'unsteered'} texts", index, len(texts))
        following = text.following
        theirs = other.logit_rows(text.tokens[:-1], text.prompt, steering)
        parts: list[Positions] = []
        for ours, total, logits in _together(baseline.rows(index, steered), theirs):
            parts.append(compare(ours, total, logits, following[: len(ours)]))
            following = following[len(ours) :]
        found.append(Positions.joined(parts))
    return found


def effect_of(
    baseline: Baseline, other: Backend, steering: Sequence[Steering], progress: Progress | None = None
) -> Effect:
    """The effect of steering on the first EFFECT_TEXTS steered texts. Errors: EdgeSteerError if it has none."""
    count, first = min(EFFECT_TEXTS, len(baseline.steered)), first_layer(baseline.steering)
    sums, rows = [], 0
    for index in range(count):
        if progress:
            progress("comparing the effect of steering", index, count)
        ours, theirs = baseline.shift(index), shift(other, baseline.steered[index], steering, first)
        sums.append(
            [
                *_products(ours.logits, theirs.logits),
                *_products(ours.states, theirs.states),
                *_products(ours.placed, theirs.placed),
            ]
        )
        rows += len(ours.logits)
    added = np.array(sums)
    if not added.size or not (added.sum(axis=0)[[1, 4, 7]] > 0).all():
        raise EdgeSteerError("the steering does nothing in the reference; give a strength other than 0")
    logits, states, placed = added[:, :3], added[:, 3:6], added[:, 6:].sum(axis=0)
    return Effect(
        texts=count,
        positions=rows,
        cosine=float(_cosine(logits.sum(axis=0))),
        cosine_interval=over_texts(logits, _cosine),
        norm=float(_norm(logits.sum(axis=0))),
        norm_interval=over_texts(logits, _norm),
        placed_cosine=float(_cosine(placed)),
        placed_norm=float(_norm(placed)),
        residual_cosine=float(_cosine(states.sum(axis=0))),
        residual_cosine_interval=over_texts(states, _cosine),
        residual_norm=float(_norm(states.sum(axis=0))),
        residual_norm_interval=over_texts(states, _norm),
    )


def _findings(
    tolerance: Tolerance,
    rows: Sequence[MechanismRow],
    unsteered: Divergence,
    steered: Divergence | None,
    effect: Effect | None,
    kl_ratio: float | None,
) -> list[Finding]:
    """Each figure that has a tolerance, with its verdict."""
    found = []
    if rows:
        off = [row.neighbour for row in rows if row.neighbour is not None]
        found += [
            finding("mechanism: median max|delta logit|", max(r.median for r in rows), None, MECHANISM, sure=True),
            finding("mechanism: residual stream", max(r.residual for r in rows), None, RESIDUAL, sure=True),
            finding("mechanism: one layer off", min(off), None, MECHANISM, at_most=False, sure=True),
        ]
    for name, divergence in (("unsteered", unsteered), ("steered", steered)):
        if divergence:
            enough = divergence.kl_interval if divergence.positions >= MIN_POSITIONS else None
            found.append(finding(f"{name}: mean KL", divergence.kl["mean"], enough, tolerance.kl))
    if effect and kl_ratio is not None:
        several = steered is not None and min(steered.texts, unsteered.texts) > 1
        found += [
            finding("steered / unsteered: median KL", kl_ratio, None, tolerance.kl_ratio, sure=several),
            finding("what is added: cosine", effect.placed_cosine, None, 1 - PLACED, at_most=False, sure=True),
            finding("what is added: length off by", abs(effect.placed_norm - 1), None, PLACED, sure=True),
            finding("effect: cosine", effect.cosine, effect.cosine_interval, tolerance.cosine, at_most=False),
            *_length("effect: length", effect.norm, effect.norm_interval, tolerance.norm),
            finding(
                "effect on the residual stream: cosine",
                effect.residual_cosine,
                effect.residual_cosine_interval,
                tolerance.cosine,
                at_most=False,
            ),
            *_length(
                "effect on the residual stream: length",
                effect.residual_norm,
                effect.residual_norm_interval,
                tolerance.norm,
            ),
        ]
    return found


def _length(name: str, value: float, interval: Interval | None, tolerance: float) -> list[Finding]:
    """A relative length may be off to either side."""
    return [
        finding(f"{name}, at most", value, interval, 1 + tolerance),
        finding(f"{name}, at least", value, interval, 1 - tolerance, at_most=False),
    ]


def _mechanism(baseline: Live, other: Backend, steering: Steering, report: Progress) -> list[MechanismRow]:
    """At every block of the model: a layer the vector lacks is steered by the direction of its nearest."""
    blocks = range(baseline.model.block_count)
    vector = everywhere(steering.vector, len(blocks))
    strengths = sorted({0.0, steering.strength, -steering.strength})
    rows = []
    for block in blocks:
        report("checking the mechanism", block, len(blocks))
        texts = (baseline.steered or baseline.unsteered)[:MECHANISM_TEXTS]
        here = strengths if block == 0 else [strength for strength in strengths if strength]
        rows += mechanism(baseline.backend, other, vector, texts, layers=[block], strengths=here)
    return rows


def _together(ours: Iterator[Piece], theirs: Iterator[Array]) -> Iterator[tuple[Array, Floats, Array]]:
    """Two streams of rows cut to pieces of the same rows; a piece of neither is kept past its end."""
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


def _products(ours: Array, theirs: Array) -> list[float]:
    """ours . theirs, ours . ours, theirs . theirs."""
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    return [float(a @ b), float(a @ a), float(b @ b)]


def _cosine(products: Floats) -> Floats:
    found: Floats = products[..., 0] / np.sqrt(np.maximum(products[..., 1] * products[..., 2], np.finfo(float).tiny))
    return found


def _norm(products: Floats) -> Floats:
    found: Floats = np.sqrt(products[..., 2] / products[..., 1])
    return found
