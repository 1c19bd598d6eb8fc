"""How far a quantised steered model may be from its reference, by type.

KL: three times the mean that llama.cpp publishes for Llama-3-8B on wikitext-2 (tools/quantize/README.md), since
smaller models suffer more, and no less than a real model needs; float types by what rounding costs. The effect of
steering on logits and on the last block, and the KL ratio: what quantising real models changes when a middle layer is
steered, by a rule that was written before they were measured (docs/reading-a-certificate.md). What is added where
steering begins is the same in every type.
It only states what is allowed; findings.py holds figures against it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from edge_steer.core.errors import EdgeSteerError

MECHANISM = 1e-4  # median of max|delta logit|, F32 GGUF and KV, no flash attention, against torch float32
ROUNDINGS = 30  # max|delta logit| over what float32 and float64 differ by in the reference on the same text
RESIDUAL = 1e-4  # the same of the residual stream, relative to its root mean square
AT_FIRST_BLOCK = 1e-3  # of what is added at the first steered block, of every type: rounding of a float32 sum
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
    "F32": Tolerance(kl=1e-6, kl_ratio=2.5, cosine=0.9999, norm=0.002, accuracy=0.02),
    "F16": Tolerance(kl=1e-3, kl_ratio=2.5, cosine=0.999, norm=0.01, accuracy=0.02),
    "BF16": Tolerance(kl=1e-2, kl_ratio=2.5, cosine=0.98, norm=0.05, accuracy=0.02),
    "Q8_0": Tolerance(kl=0.007, kl_ratio=2.5, cosine=0.89, norm=0.3, accuracy=0.02),
    "Q6_K": Tolerance(kl=0.02, kl_ratio=2.5, cosine=0.83, norm=0.3, accuracy=0.03),
    "Q5_K_M": Tolerance(kl=0.035, kl_ratio=2.5, cosine=0.79, norm=0.3, accuracy=0.03),
    "Q5_K_S": Tolerance(kl=0.035, kl_ratio=2.5, cosine=0.79, norm=0.3, accuracy=0.03),
    "Q4_K_M": Tolerance(kl=0.1, kl_ratio=2.5, cosine=0.75, norm=0.53, accuracy=0.05),
    "Q4_K_S": Tolerance(kl=0.12, kl_ratio=2.5, cosine=0.75, norm=0.53, accuracy=0.05),
    "IQ4_XS": Tolerance(kl=0.12, kl_ratio=2.5, cosine=0.75, norm=0.53, accuracy=0.05),
    "Q4_0": Tolerance(kl=0.2, kl_ratio=2.5, cosine=0.7, norm=0.53, accuracy=0.05),
    "Q3_K_M": Tolerance(kl=0.3, kl_ratio=2.5, cosine=0.5, norm=0.53, accuracy=0.08),
    "Q2_K": Tolerance(kl=1.35, kl_ratio=2.5, cosine=0.4, norm=0.53, accuracy=0.1),
}


def tolerance_of(quant: str, changes: Mapping[str, float] | None = None) -> Tolerance:
    """The tolerance of a type. changes: field of Tolerance -> a value in place of the type's own.

    A type that is not in TOLERANCES needs a `kl` of its own; the rest is that of Q2_K. Errors: EdgeSteerError.
    """
    changes = changes or {}
    names = [field.name for field in fields(Tolerance)]
    if unknown := [name for name in changes if name not in names]:
        raise EdgeSteerError(f"no tolerance {unknown[0]!r}; there are {', '.join(names)}")
    if quant not in TOLERANCES and "kl" not in changes:
        raise EdgeSteerError(
            f"no tolerance is known for {quant}; set the tolerance kl, or take one of {', '.join(TOLERANCES)}"
        )
    return replace(TOLERANCES.get(quant, TOLERANCES["Q2_K"]), **changes)
