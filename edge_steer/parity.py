"""The quantised engine against the reference: the same token ids through two Backends, the logits compared.

`mechanism` asks whether both add the vector at the same place, `distribution` how far the next-token
probabilities are apart and whether steering moves them alike. It loads nothing and prints nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_steer import pairs
from edge_steer.backend import Backend, Tokens
from edge_steer.errors import EdgeSteerError
from edge_steer.files import read_lines
from edge_steer.stats import Floats, cosine, kl_divergence, quantiles
from edge_steer.vector import PHASES, Array, Phase, Steering, SteeringVector

Progress = Callable[[str, int, int], None]  # what is being done, how much is done, of how much

MECHANISM_TOLERANCE = 1e-4  # median of max|delta logit|, F32 GGUF and KV, no flash attention, against torch float32
# Mean KL in nats of quantised against reference. Three times what is published for Llama-3-8B on wikitext-2
# (llama.cpp, tools/quantize/README.md), since smaller models suffer more; float types by what rounding costs.
KL_TOLERANCE = {
    "F32": 1e-6, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 0.005, "Q6_K": 0.02, "Q5_K_M": 0.035, "Q4_K_M": 0.1,
    "Q4_0": 0.2, "Q3_K_M": 0.3, "Q2_K": 1.35,
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """Token ids to compare on; the first `prompt` of them are the prompt."""

    tokens: Tokens
    prompt: int


@dataclass(frozen=True)
class MechanismRow:
    """max|delta logit| of each position, with the vector at `layer` in both: its median and its maximum over positions.

    neighbour: the median with the vector one layer off in the reference; None at strength 0.
    """

    layer: int
    phase: Phase
    strength: float
    median: float
    max: float
    neighbour: float | None


@dataclass(frozen=True)
class Distribution:
    """Divergence of the other backend from the reference over all positions of all texts.

    kl: mean, median, p90, p99, max of KL(reference || other) in nats. top1: share of equal first choices.
    effect_cosine, effect_norm: cosine and relative norm of (steered - unsteered) logits, other against
    reference; None without steering.
    """

    positions: int
    kl: dict[str, float]
    top1: float
    effect_cosine: float | None
    effect_norm: float | None


@dataclass(frozen=True)
class Report:
    """What `check` found. `mechanism` is empty but for an F32 file; `steered` is None without steering."""

    quant: str
    mechanism: list[MechanismRow]
    mechanism_tolerance: float
    unsteered: Distribution
    steered: Distribution | None
    kl_tolerance: float

    @property
    def passed(self) -> bool:
        """Every mechanism median within its tolerance and its neighbour's outside, every mean KL within its own."""
        return (
            all(row.median <= self.mechanism_tolerance for row in self.mechanism)
            and all(row.neighbour > self.mechanism_tolerance for row in self.mechanism if row.neighbour is not None)
            and all(found.kl["mean"] <= self.kl_tolerance for found in (self.unsteered, self.steered) if found)
        )


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
    """The distribution unsteered and steered and, for an F32 file, the mechanism at every layer of each vector.

    tolerance: allowed mean KL; None is KL_TOLERANCE of the quant. Errors: EdgeSteerError for a quant without one.
    """
    allowed = KL_TOLERANCE.get(quant) if tolerance is None else tolerance
    if allowed is None:
        raise EdgeSteerError(f"no tolerance is known for {quant}; give one with --tolerance")
    report = progress or (lambda *_: None)
    rows: list[MechanismRow] = []
    if quant == "F32":
        for one in steering:
            layers = [layer for layer in one.vector.layers if layer]
            strengths = sorted({0.0, 1.0, -1.0, one.strength})
            for done, layer in enumerate(layers):
                report("checking the mechanism", done, len(layers))
                rows += mechanism(reference, other, one.vector, texts[:2], layers=[layer], strengths=strengths)
    report("comparing distributions", 0, 2)
    unsteered = distribution(reference, other, texts)
    report("comparing distributions", 1, 2)
    steered = distribution(reference, other, texts, steering) if steering else None
    return Report(quant, rows, MECHANISM_TOLERANCE, unsteered, steered, allowed)


def mechanism(
    reference: Backend,
    other: Backend,
    vector: SteeringVector,
    texts: Sequence[Text],
    *,
    layers: Iterable[int],
    strengths: Sequence[float],
    phases: Sequence[Phase] = PHASES,
) -> list[MechanismRow]:
    """max|delta logit| for every layer, phase and strength, and how far a neighbouring layer is off.

    The verdict is on the median over positions: a misplaced vector moves them all, while float32 rounding alone
    is amplified a hundredfold at the few positions where the model is undecided.
    """
    rows: list[MechanismRow] = []
    for layer in layers:
        for phase in phases:
            for strength in strengths:
                right = [Steering(vector, strength, (layer,), phase)]
                off = [Steering(_moved(vector, layer), strength, phase=phase)]
                deltas, neighbours = [], []
                for text in texts:
                    theirs = other.logits(text.tokens, text.prompt, right)
                    deltas.append(_delta(reference.logits(text.tokens, text.prompt, right), theirs))
                    if strength:
                        neighbours.append(_delta(reference.logits(text.tokens, text.prompt, off), theirs))
                joined = np.concatenate(deltas)
                median, largest = float(np.median(joined)), float(joined.max())
                neighbour = float(np.median(np.concatenate(neighbours))) if strength else None
                rows.append(MechanismRow(layer, phase, strength, median, largest, neighbour))
    return rows


def distribution(
    reference: Backend, other: Backend, texts: Sequence[Text], steering: Sequence[Steering] = ()
) -> Distribution:
    """How far `other` is from `reference` on the given texts under the given steering.

    Errors: EdgeSteerError for no texts.
    """
    if not texts:
        raise EdgeSteerError("no texts to compare on; at least one is needed")
    divergences: list[Floats] = []
    agreed: list[Floats] = []
    effects: list[tuple[float, float, float]] = []
    for text in texts:
        ours, theirs = (b.logits(text.tokens, text.prompt, steering) for b in (reference, other))
        divergences.append(kl_divergence(ours, theirs))
        agreed.append((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).astype(np.float64))
        if steering:
            our_effect = ours - reference.logits(text.tokens, text.prompt)
            their_effect = theirs - other.logits(text.tokens, text.prompt)
            effects.append(
                (
                    cosine(our_effect, their_effect),
                    float(np.linalg.norm(their_effect) / np.linalg.norm(our_effect)),
                    float(len(our_effect)),
                )
            )
    values = np.concatenate(divergences)
    weights = [rows for _, _, rows in effects]
    return Distribution(
        positions=len(values),
        kl=quantiles(values),
        top1=float(np.concatenate(agreed).mean()),
        effect_cosine=float(np.average([c for c, _, _ in effects], weights=weights)) if effects else None,
        effect_norm=float(np.average([n for _, n, _ in effects], weights=weights)) if effects else None,
    )


def _delta(ours: Array, theirs: Array) -> Array:
    """max|delta logit| of each position."""
    largest: Array = np.abs(ours - theirs).max(axis=1)
    return largest


def _moved(vector: SteeringVector, layer: int) -> SteeringVector:
    """The vector with the direction of `layer` at a neighbouring layer instead."""
    last = vector.model.block_count - 1
    neighbour = layer + 1 if layer < last else layer - 1
    moved = {neighbour: vector.directions[layer]}
    return SteeringVector(moved, vector.model, vector.method, vector.pooling)
