"""A quantised steered model against its reference: the same token ids through both, everything compared.

Takes a Baseline (the reference, running or saved) and another Backend; gives a Report: how far next-token probabilities
are apart, whether steering moves both alike, for an exact file whether the vector is added at the same place, and a
verdict. It loads nothing and prints nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.steering import Steering
from edge_steer.parity.baseline import Baseline, LiveReference
from edge_steer.parity.divergence import Divergence, summarise
from edge_steer.parity.effect import Effect
from edge_steer.parity.findings import (
    Finding,
    Verdict,
    divergence_finding,
    effect_findings,
    finding,
    mechanism_findings,
    overall,
)
from edge_steer.parity.measure import measure_mechanism, measure_positions, measure_texts
from edge_steer.parity.mechanism import EXACT, MechanismRow, check_exact
from edge_steer.parity.texts import TokenisedText
from edge_steer.parity.tolerances import KL_FLOOR, Tolerance
from edge_steer.storage.records import Store


@dataclass(frozen=True)
class Report:
    """One file against its reference. mechanism is empty but for an exact file; the last three are None unsteered.

    kl_ratio: median KL of the steered texts over that of the unsteered, each at least KL_FLOOR. mean_ratio: the ratio
    of the means, None where rounding is all there is. They say whether quantising hurts steering more than the model.
    """

    quant: str
    tolerance: Tolerance
    mechanism: tuple[MechanismRow, ...]
    unsteered: Divergence
    steered: Divergence | None
    effect: Effect | None
    kl_ratio: float | None
    mean_ratio: float | None
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        return overall([finding.verdict for finding in self.findings])

    @property
    def passed(self) -> bool:
        """Whether nothing is out of tolerance; too little data to say so is no failure."""
        return self.verdict != "fail"

    def judged(self, tolerance: Tolerance) -> Self:
        """The same figures held against a tolerance."""
        return replace(self, tolerance=tolerance, findings=tuple(_findings(self, tolerance)))


def compare_backend(
    baseline: Baseline,
    other: Backend,
    steering: Sequence[Steering],
    quant: str,
    tolerance: Tolerance,
    *,
    store: Store | None = None,
    progress: Progress = SILENT,
) -> Report:
    """All figures of one file, judged.

    steering: what `other` is steered with; the baseline has its own. The mechanism is checked of an exact file where
    the reference is running. store: keeps what is measured; what it holds already is not measured again.
    Errors, before anything is computed: EdgeSteerError for another model, one that cannot be steered, or an exact file
    that llama.cpp does not compute exactly.
    """
    if baseline.model.block_count != other.model.block_count or baseline.model.hidden_size != other.model.hidden_size:
        raise EdgeSteerError(f"the file holds {other.model}, the reference {baseline.model}; compare the same model")
    other.check_steering(steering)
    check_exact(quant, other.model.architecture)
    rows = measure_mechanism(baseline, other, steering, store=store, progress=progress) if quant == EXACT else ()
    figures = measure_texts(baseline, other, steering, store=store, progress=progress)
    kl_ratio = mean_ratio = None
    if figures.steered:
        medians, means = ([d.kl[key] for d in (figures.steered, figures.unsteered)] for key in ("median", "mean"))
        kl_ratio = max(medians[0], KL_FLOOR) / max(medians[1], KL_FLOOR)
        mean_ratio = means[0] / means[1] if min(means) > 0 else None
    report = Report(quant, tolerance, rows, **vars(figures), kl_ratio=kl_ratio, mean_ratio=mean_ratio, findings=())
    return report.judged(tolerance)


def distribution(
    reference: Backend, other: Backend, texts: Sequence[TokenisedText], steering: Sequence[Steering] = ()
) -> Divergence:
    """How far `other` is from `reference` on texts under a steering. Errors: EdgeSteerError for no texts."""
    live = LiveReference(reference, texts, texts if steering else (), steering)
    return summarise(measure_positions(live, other, steering, steered=bool(steering)))


def _findings(report: Report, tolerance: Tolerance) -> Iterator[Finding]:
    """Each figure that has a tolerance."""
    if report.mechanism:
        yield from mechanism_findings(report.mechanism)
    yield divergence_finding("unsteered", report.unsteered, tolerance)
    if report.steered:
        yield divergence_finding("steered", report.steered, tolerance)
    if report.steered and report.effect and report.kl_ratio is not None:
        several = min(report.steered.texts, report.unsteered.texts) > 1
        yield finding("steered / unsteered: median KL", report.kl_ratio, None, tolerance.kl_ratio, exact=several)
        yield from effect_findings(report.effect, tolerance)
