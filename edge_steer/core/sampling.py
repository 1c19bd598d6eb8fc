"""How a token is chosen from its logits: the settings of llama.cpp's sampler chain.

A value only; it knows no runtime. PyTorch honours the plain ones and refuses the others (`Sampling.llama_only`).
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from edge_steer.core.errors import RequestError

Link = Literal["penalties", "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature"]
LINKS: tuple[Link, ...] = get_args(Link)
MOST_SEED = 2**32 - 1
BREAKERS = ("\n", ":", '"', "*")


@dataclass(frozen=True)
class Dry:
    """DRY: a token that would go on with a repetition of more than `allowed_length` tokens loses
    multiplier * base ** (length - allowed_length). A repetition does not reach beyond a string of `breakers`.
    """

    multiplier: float
    base: float = 1.75
    allowed_length: int = 2
    last_n: int = 64
    breakers: tuple[str, ...] = BREAKERS

    def __post_init__(self) -> None:
        _check_finite("dry", self.multiplier, self.base)
        if self.allowed_length < 0 or self.last_n < 0:
            raise RequestError(f"{self}: need allowed_length >= 0 and last_n >= 0")


@dataclass(frozen=True)
class Xtc:
    """XTC: with `probability`, all tokens above `threshold` are left out but the least likely of them."""

    probability: float
    threshold: float = 0.1

    def __post_init__(self) -> None:
        if not (0 <= self.probability <= 1 and 0 <= self.threshold <= 1):
            raise RequestError(f"{self}: both must lie in 0..1")


@dataclass(frozen=True)
class Mirostat:
    """Mirostat: `tau` is the surprise aimed at, `eta` how fast it is learnt. It takes the place of all but
    temperature."""

    version: Literal[1, 2]
    tau: float = 5.0
    eta: float = 0.1

    def __post_init__(self) -> None:
        _check_finite("mirostat", self.tau, self.eta)


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen: by the links of `order`, then a seeded draw.

    Temperature 0 is greedy; top_k 0, top_p 1, min_p 0, typical_p 1, top_n_sigma 0 and dynamic_range 0 are off.
    repeat_penalty (1 is off), frequency_penalty and presence_penalty (0 is off) look at the last `repeat_last_n`
    tokens, prompt included. dynamic_range: temperature varies by so much around itself. min_keep: no link leaves
    fewer tokens. logit_bias: (token, what is added to its logit) before all; -inf forbids it. grammar: GBNF that the
    answer obeys; json_schema: a JSON schema, as text, that it obeys. Errors: RequestError for a setting out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    dynamic_range: float = 0.0
    dynamic_exponent: float = 1.0
    min_keep: int = 1
    dry: Dry | None = None
    xtc: Xtc | None = None
    mirostat: Mirostat | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str = ""
    json_schema: str = ""
    order: tuple[Link, ...] = LINKS

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1):
            raise RequestError(f"{self}: need temperature >= 0, top_k >= 0, 0 < top_p <= 1, 0 <= min_p <= 1")
        if not (self.repeat_penalty > 0 and self.repeat_last_n >= 0 and self.min_keep >= 0):
            raise RequestError(f"{self}: need repeat_penalty > 0, repeat_last_n >= 0, min_keep >= 0")
        if not (0 < self.typical_p <= 1 and self.dynamic_range >= 0):
            raise RequestError(f"{self}: need 0 < typical_p <= 1 and dynamic_range >= 0")
        _check_finite("sampling", self.temperature, self.repeat_penalty, self.frequency_penalty, self.presence_penalty)
        _check_finite("sampling", self.top_n_sigma, self.dynamic_range, self.dynamic_exponent)
        if not 0 <= self.seed <= MOST_SEED:
            raise RequestError(f"seed is {self.seed}; it must lie in 0..{MOST_SEED}")
        if any(math.isnan(bias) or bias == math.inf for _, bias in self.logit_bias):
            raise RequestError("a logit_bias is NaN or infinite; it must be finite, or -inf to forbid the token")
        if self.grammar and self.json_schema:
            raise RequestError("grammar and json_schema are both given; give one of them")
        if strange := [link for link in self.order if link not in LINKS]:
            raise RequestError(f"no sampler {strange[0]!r}; there are {', '.join(LINKS)}")

    @property
    def penalises(self) -> bool:
        """Whether a token's logit depends on the tokens before it."""
        return self.repeat_last_n > 0 and (self.repeat_penalty != 1 or self._adds_penalty) and "penalties" in self.order

    @property
    def takes_likeliest(self) -> bool:
        """Whether the token is always the likeliest one of the model's own logits."""
        return not (self.temperature or self.dynamic_range or self.penalises or self.llama_only)

    @property
    def llama_only(self) -> tuple[str, ...]:
        """The settings in force that only llama.cpp's chain has."""
        in_force = {
            "typical_p": self.typical_p < 1,
            "top_n_sigma": self.top_n_sigma > 0,
            "dynamic_range": self.dynamic_range > 0,
            "dry": self.dry is not None,
            "xtc": self.xtc is not None,
            "mirostat": self.mirostat is not None,
            "logit_bias": bool(self.logit_bias),
            "grammar": bool(self.grammar),
            "json_schema": bool(self.json_schema),
            "order": self.order != LINKS,
        }
        return tuple(name for name, active in in_force.items() if active)

    @property
    def _adds_penalty(self) -> bool:
        return bool(self.frequency_penalty or self.presence_penalty)


def _check_finite(what: str, *numbers: float) -> None:
    if not all(map(math.isfinite, numbers)):
        shown = ", ".join(f"{number:g}" for number in numbers)
        raise RequestError(f"{what} has a number that is not finite: {shown}")


GREEDY = Sampling()
