"""How far a quantised steered model may be from its reference, by type, and the verdict on figures with intervals.

KL: three times the mean that llama.cpp publishes for Llama-3-8B on wikitext-2 (tools/quantize/README.md), since
smaller models suffer more; float types by what rounding costs. The effect of steering on logits and on the last block:
what quantising the bundled model changes of it when a middle layer is steered (docs/certificate.md), with room beyond
the end of the interval that is further off. What is added where steering begins is the same in every type.

A verdict takes the interval: "pass" where all of it is within tolerance, "fail" where none of it is, else "not enough
data".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import Interval

Verdict = Literal["pass", "fail", "not enough data"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
MECHANISM = 1e-4  # median of max|delta logit|, F32 GGUF and KV, no flash attention, against torch float32
RESIDUAL = 1e-4  # the same of the residual stream, relative to its root mean square
PLACED = 1e-3  # of what is added at the first steered block, of every type: rounding of a float32 sum
MIN_POSITIONS = 100  # with fewer llama-perplexity gives no statistics
KL_FLOOR = 1e-6  # nats; a ratio of medians below it says nothing


@dataclass(frozen=True)
class Tolerance:
    """What is allowed of one type.

    kl: mean KL(reference || quantised) in nats, unsteered and steered. kl_ratio: median KL steered over unsteered.
    cosine: least cosine of the effect of steering with the reference's, on logits and on the residual stream.
    norm: most relative difference of its length. accuracy: most loss of accuracy at the same strength.
    """

    kl: float
    kl_ratio: float
    cosine: float
    norm: float
    accuracy: float


TOLERANCES: dict[str, Tolerance] = {
    "F32": Tolerance(kl=1e-6, kl_ratio=4, cosine=0.9999, norm=0.002, accuracy=0.02),
    "F16": Tolerance(kl=1e-3, kl_ratio=4, cosine=0.999, norm=0.01, accuracy=0.02),
    "BF16": Tolerance(kl=1e-2, kl_ratio=4, cosine=0.98, norm=0.05, accuracy=0.02),
    "Q8_0": Tolerance(kl=0.005, kl_ratio=4, cosine=0.98, norm=0.05, accuracy=0.02),
    "Q6_K": Tolerance(kl=0.02, kl_ratio=4, cosine=0.93, norm=0.12, accuracy=0.03),
    "Q5_K_M": Tolerance(kl=0.035, kl_ratio=4, cosine=0.88, norm=0.25, accuracy=0.03),
    "Q5_K_S": Tolerance(kl=0.035, kl_ratio=4, cosine=0.88, norm=0.25, accuracy=0.03),
    "Q4_K_M": Tolerance(kl=0.1, kl_ratio=4, cosine=0.8, norm=0.25, accuracy=0.05),
    "Q4_K_S": Tolerance(kl=0.12, kl_ratio=4, cosine=0.75, norm=0.3, accuracy=0.05),
    "IQ4_XS": Tolerance(kl=0.12, kl_ratio=4, cosine=0.75, norm=0.3, accuracy=0.05),
    "Q4_0": Tolerance(kl=0.2, kl_ratio=4, cosine=0.7, norm=0.3, accuracy=0.05),
    "Q3_K_M": Tolerance(kl=0.3, kl_ratio=4, cosine=0.5, norm=0.4, accuracy=0.08),
    "Q2_K": Tolerance(kl=1.35, kl_ratio=4, cosine=0.4, norm=0.4, accuracy=0.1),
}


@dataclass(frozen=True)
class Finding:
    """One figure held against its tolerance. at_most: whether the figure may be no larger, else no smaller."""

    name: str
    value: float
    interval: Interval | None
    tolerance: float
    at_most: bool
    verdict: Verdict


def tolerance_of(quant: str, changes: Mapping[str, float] | None = None) -> Tolerance:
    """The tolerance of a type, with `changes` in place of some of it.

    A type that is not in TOLERANCES needs a `kl` of its own; the rest is that of Q2_K. Errors: EdgeSteerError.
    """
    changes = changes or {}
    names = [field.name for field in fields(Tolerance)]
    if unknown := [name for name in changes if name not in names]:
        raise EdgeSteerError(f"no tolerance {unknown[0]!r}; there are {', '.join(names)}")
    if quant not in TOLERANCES and "kl" not in changes:
        raise EdgeSteerError(
            f"no tolerance is known for {quant}; give one with --tolerance, or take one of {', '.join(TOLERANCES)}"
        )
    return replace(TOLERANCES.get(quant, TOLERANCES["Q2_K"]), **changes)


def finding(
    name: str, value: float, interval: Interval | None, tolerance: float, *, at_most: bool = True, sure: bool = False
) -> Finding:
    """A figure's verdict. Without an interval it can fail, but pass only if the value is `sure`, as no estimate is."""
    low, high = (value, value) if interval is None else interval
    verdict: Verdict = "not enough data"
    if (low > tolerance) if at_most else (high < tolerance):
        verdict = "fail"
    elif (interval is not None or sure) and ((high <= tolerance) if at_most else (low >= tolerance)):
        verdict = "pass"
    return Finding(name, value, interval, tolerance, at_most, verdict)


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst: one failure fails all, and one that lacks data leaves all without a verdict."""
    if not verdicts:
        return "not enough data"
    return min(verdicts, key=("fail", "not enough data", "pass").index)
