"""The quantised engine against the reference: the same token ids through both, their distributions compared.

Takes what the reference says of its texts (live or saved, see baseline.py) and another Backend; gives how far the
next-token probabilities are apart, whether steering moves them alike, for an exact file whether it is added at the
same place, and a verdict. It loads nothing and prints nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edge_steer.core.architectures import HALF_GELU
from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.stats import Floats, Interval
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Array
from edge_steer.parity.baseline import Baseline, Live, Piece
from edge_steer.parity.divergence import Divergence, Positions, compare, summarise
from edge_steer.parity.effect import Effect, effect_of
from edge_steer.parity.mechanism import MechanismRow, everywhere, mechanism
from edge_steer.parity.texts import Text
from edge_steer.parity.tolerances import (
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

MECHANISM_TEXTS = 1
EXACT = "F32"  # the type whose mechanism is checked
_NO_PIECE: Piece = (np.empty((0, 0), dtype=np.float32), np.empty(0))
KL_TOLERANCE = {quant: tolerance.kl for quant, tolerance in TOLERANCES.items()}


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


def check(
    reference: Backend,
    other: Backend,
    texts: Sequence[Text],
    steering: Sequence[Steering],
    quant: str,
    tolerance: float | None = None,
    progress: Progress = SILENT,
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
    progress: Progress = SILENT,
) -> Report:
    """Everything that is asked of one file.

    steering: what `other` is steered with; the baseline has its own. The mechanism is checked of an F32 file where
    the reference is at hand. Errors, before anything is computed: EdgeSteerError for another model, one that
    cannot be steered, or an F32 file that llama.cpp does not compute exactly.
    """
    if baseline.model.block_count != other.model.block_count or baseline.model.hidden_size != other.model.hidden_size:
        raise EdgeSteerError(f"the file holds {other.model}, the reference {baseline.model}; compare the same model")
    other.check_steering(steering)
    check_exact(quant, other.model.architecture)
    rows: list[MechanismRow] = []
    if quant == EXACT and isinstance(baseline, Live):
        for one in steering:
            rows += _mechanism(baseline, other, one, progress)
    unsteered = summarise(positions(baseline, other, (), steered=False, progress=progress))
    steered = effect = kl_ratio = mean_ratio = None
    if steering and baseline.steered:
        steered = summarise(positions(baseline, other, steering, steered=True, progress=progress))
        effect = effect_of(baseline, other, steering, progress)
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
    progress: Progress = SILENT,
) -> list[Positions]:
    """What is kept of each position of the baseline's unsteered or steered texts, text by text.

    Logits come in pieces: memory grows neither with the texts nor with their length.
    """
    texts = baseline.steered if steered else baseline.unsteered
    found = []
    for index, text in enumerate(texts):
        progress(f"comparing {'steered' if steered else 'unsteered'} texts", index, len(texts))
        following = text.following
        theirs = other.logit_rows(text.tokens[:-1], text.prompt, steering)
        parts: list[Positions] = []
        for ours, total, logits in _together(baseline.rows(index, steered), theirs):
            parts.append(compare(ours, total, logits, following[: len(ours)]))
            following = following[len(ours) :]
        found.append(Positions.joined(parts))
    return found


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
