"""What is trained and how: the settings of a laptop, and those of the paper.

Values only. Source: "Bias-Only Adaptation", appendices C, H and Table 6, and the configurations published with its
code. It runs nothing.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, get_args

from edge_steer.core.errors import EdgeSteerError

Loss = Literal["token", "sequence"]
Baseline = Literal["leave-one-out", "mean"]
Preset = Literal["laptop", "paper"]
Kind = Literal["vector", "lora", "full"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
PRESETS: tuple[Preset, ...] = get_args(Preset)
KINDS: tuple[Kind, ...] = get_args(Kind)
WARM_UP_SHARE = 0.03  # of the steps


class Schedule(Protocol):
    """What an optimiser asks of settings."""

    @property
    def clip(self) -> float:
        """The most norm of a gradient."""

    def rate(self, step: int) -> float:
        """The learning rate of a step, which counts from 0."""


@dataclass(frozen=True)
class Adapter:
    """What is trained: a vector a block, low-rank matrices, or all weights.

    layers: of the vector; None is every block. rank, modules: of the low-rank matrices, and the last names of the
    linear modules that have them; their factor alpha / rank is 1, as the paper's is.
    Errors: EdgeSteerError for an unknown kind, or a rank below 1.
    """

    kind: Kind = "vector"
    layers: tuple[int, ...] | None = None
    rank: int = 4
    modules: tuple[str, ...] = ("down_proj",)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EdgeSteerError(f"no adapter {self.kind!r}; there are {', '.join(KINDS)}")
        if self.rank < 1:
            raise EdgeSteerError(f"rank is {self.rank}; it must be at least 1")
        if self.layers is not None and self.kind != "vector":
            raise EdgeSteerError(f"layers are chosen for a vector alone; {self.kind} is of all blocks")

    @property
    def alpha(self) -> float:
        return float(self.rank)

    def described(self, blocks: int) -> dict[str, Any]:
        """What the numbers of every step depend on; blocks: of the model."""
        if self.kind == "vector":
            return {"layers": list(range(blocks) if self.layers is None else sorted(set(self.layers)))}
        settings: dict[str, Any] = {"adapter": self.kind}
        return settings | ({"rank": self.rank, "modules": list(self.modules)} if self.kind == "lora" else {})

    def __str__(self) -> str:
        return {"vector": "vector", "lora": f"LoRA-{self.rank}", "full": "all weights"}[self.kind]


VECTOR = Adapter()


@dataclass(frozen=True)
class RlooSettings:
    """How RLOO trains; the defaults are a laptop's for a vector.

    steps: of the optimiser, one for each batch of answers. prompts, generations: problems of a batch, and answers to
    each. max_tokens: of an answer. learning_rate: constant behind a linear warm-up of `warmup` steps (None is 3% of
    the steps). loss: the mean over all tokens of a batch ("token", as the paper's models were trained) or over its
    answers ("sequence", the paper's formula). baseline: the mean of the other answers to a problem, or of all. kl: the
    coefficient of the divergence from the untrained model. clip: the most norm of a gradient. importance_cap: the most
    a token weighs because PyTorch holds it likelier than llama.cpp did; 0 leaves all weights at 1.
    shuffle_rewards: deal the rewards of a batch out at random: a control, which must teach nothing.
    Errors: EdgeSteerError for a number out of range.
    """

    steps: int = 100
    prompts: int = 8
    generations: int = 8
    max_tokens: int = 512
    learning_rate: float = 1e-3
    warmup: int | None = None
    loss: Loss = "token"
    baseline: Baseline = "leave-one-out"
    kl: float = 0.0
    clip: float = 2.0
    importance_cap: float = 2.0
    seed: int = 0
    shuffle_rewards: bool = False

    def __post_init__(self) -> None:
        if self.generations < 2:
            raise EdgeSteerError(f"{self.generations} answers to a problem; a baseline needs at least 2")
        counts = {"steps": self.steps, "prompts": self.prompts, "max_tokens": self.max_tokens}
        for name, count in counts.items():
            if count < 1:
                raise EdgeSteerError(f"{name} is {count}; it must be at least 1")
        rates = {"learning_rate": self.learning_rate, "kl": self.kl, "importance_cap": self.importance_cap}
        for name, rate in (rates | {"warmup": self.warmup or 0, "seed": self.seed}).items():
            if not (math.isfinite(rate) and rate >= 0):
                raise EdgeSteerError(f"{name} is {rate:g}; it must be 0 or more")
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise EdgeSteerError(f"clip is {self.clip:g}; it must be more than 0")
        if self.loss not in LOSSES or self.baseline not in BASELINES:
            raise EdgeSteerError(
                f"loss {self.loss!r}, baseline {self.baseline!r}; allowed are {', '.join(LOSSES)} and "
                f"{', '.join(BASELINES)}"
            )

    @property
    def warmup_steps(self) -> int:
        return math.ceil(WARM_UP_SHARE * self.steps) if self.warmup is None else self.warmup

    def rate(self, step: int) -> float:
        """The learning rate of a step, which counts from 0; that of the first is not 0."""
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))

    def described(self) -> dict[str, Any]:
        """What the numbers of every step depend on: a run may be given more steps later."""
        described = asdict(self) | {"warmup": self.warmup_steps}
        del described["steps"]
        return described


@dataclass(frozen=True)
class SftSettings:
    """How a model learns from a teacher's solutions; the defaults are those of arXiv 2502.12143.

    epochs: how often each solution is seen. batch: solutions of a step. learning_rate: falls along a cosine to 0 at the
    end. max_tokens: longer problems with their solution are left out. clip: the most norm of a gradient. held_out:
    solutions of each teacher that are not trained on, whose likelihood is measured before and after.
    Errors: EdgeSteerError for a number out of range.
    """

    epochs: int = 2
    batch: int = 16
    learning_rate: float = 1e-5
    max_tokens: int = 4096
    clip: float = 1.0
    held_out: int = 20
    seed: int = 42

    def __post_init__(self) -> None:
        counts = {"epochs": self.epochs, "batch": self.batch, "max_tokens": self.max_tokens, "held_out": self.held_out}
        for name, count in counts.items():
            if count < 1:
                raise EdgeSteerError(f"{name} is {count}; it must be at least 1")
        for name, number in {"learning_rate": self.learning_rate, "clip": self.clip}.items():
            if not (math.isfinite(number) and number > 0):
                raise EdgeSteerError(f"{name} is {number:g}; it must be more than 0")


@dataclass(frozen=True)
class Cosine:
    """A learning rate that falls from `peak` to 0 over `steps`."""

    peak: float
    steps: int
    clip: float

    def rate(self, step: int) -> float:
        return self.peak * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class PaperModel:
    """A model of the paper's Table 1. vector, lora, full: the learning rates. generations: answers to a problem.
    context: most tokens of a problem with its answer."""

    vector: float
    lora: float = 1e-4
    full: float = 1e-6
    generations: int = 16
    context: int = 8192

    def rate(self, kind: Kind) -> float:
        return {"vector": self.vector, "lora": self.lora, "full": self.full}[kind]


PAPER = RlooSettings(steps=314, prompts=128, generations=16, max_tokens=8192)
ANOTHER = PaperModel(1e-3)
PAPER_MODELS = {
    "qwen2.5-1.5b": PaperModel(1e-3, generations=64),
    "qwen2.5-7b": ANOTHER,
    "qwen2.5-14b": PaperModel(5e-4),
    "qwen2.5-math-1.5b": PaperModel(1e-3, full=2e-6, context=4096),
    "qwen2.5-math-7b": PaperModel(1e-3, context=4096),
    "llama-3.1-8b": PaperModel(3e-4, generations=64),
    "llama-3.1-8b-instruct": PaperModel(8e-5, lora=5e-5),
}


def preset_settings(preset: Preset, model: str, kind: Kind = "vector") -> RlooSettings:
    """The settings of a preset; the paper's have the learning rate, answers and length of its models.

    model: its name, a folder or hub id included; one that the paper does not train gets the commonest settings.
    kind: what is trained; the laptop's learning rate of a LoRA or of all weights is the paper's commonest.
    Errors: EdgeSteerError for an unknown preset.
    """
    if preset == "laptop":
        return replace(RlooSettings(), learning_rate=ANOTHER.rate(kind))
    if preset != "paper":
        raise EdgeSteerError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    known = PAPER_MODELS.get(name.removeprefix("meta-"), ANOTHER)
    return replace(PAPER, learning_rate=known.rate(kind), generations=known.generations, max_tokens=known.context)
