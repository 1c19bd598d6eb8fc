"""A running server against the reference: is what it serves, steered, what the same model is in PyTorch?

Takes the address of a server, a reference, texts and the steering that is meant; gives a ServedReport. Over HTTP there
are log-probabilities of the texts' tokens and of the likeliest ones, no logits and no residual stream.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_steer.certificates.reference_side import opened_reference
from edge_steer.certificates.scored import ScoredText, Server
from edge_steer.core.backend import Backend, EngineOptions, Tokens
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.stats import Floats, Interval, log_softmax
from edge_steer.core.steering import Steer, Steering, steerings
from edge_steer.core.vector import Array
from edge_steer.parity.baseline import SteeringRecord, records_of
from edge_steer.parity.divergence import Divergence, Positions, over_texts, summarise
from edge_steer.parity.findings import Finding, Verdict, divergence_finding, finding, overall
from edge_steer.parity.texts import Texts, tokenise_texts
from edge_steer.parity.tolerances import Tolerance, tolerance_of
from edge_steer.storage.provenance import RunningModel

DEFAULTS = EngineOptions()
UNSTEERED: Mapping[str, object] = {"control_vectors": []}
SERVER_DEFAULT: Mapping[str, object] = {}
TOP = 20  # likeliest tokens asked for
LEAST = 1e-9  # probability of the rest, where rounding leaves none
SAME = 1e-6  # relative difference of strengths that are one


@dataclass(frozen=True)
class LogprobEffect:
    """What steering changes in the log-probabilities of the texts' tokens: the server's change against the reference's.

    cosine; norm, the relative length; with intervals over texts.
    """

    cosine: float
    cosine_interval: Interval | None
    norm: float
    norm_interval: Interval | None


@dataclass(frozen=True)
class ServedReport:
    """A server against its reference. steered and effect are None unsteered.

    Its KL is of the TOP likeliest tokens and the text's own, with the rest as one: never more than the full KL. So a
    failure is certain, and a pass says that much. delta_logprob: mean |difference| of the tokens' log-probabilities,
    unsteered and steered. stated: whether the server said what steered it.
    """

    url: str
    quant: str
    tolerance: Tolerance
    unsteered: Divergence
    steered: Divergence | None
    delta_logprob: tuple[float, ...]
    effect: LogprobEffect | None
    stated: bool
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        return overall([one.verdict for one in self.findings])

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class _Side:
    """All texts under one steering. changes: by text, both sides' log-probabilities of its tokens."""

    divergence: Divergence
    logprobs: tuple[tuple[Floats, Floats], ...]
    stated: tuple[SteeringRecord, ...] | None

    @property
    def delta_logprob(self) -> float:
        return float(np.abs(np.concatenate([ours - theirs for ours, theirs in self.logprobs])).mean())


def check_served(
    url: str,
    reference: str | Path | RunningModel,
    texts: Texts,
    steer: Steer = None,
    *,
    request: Mapping[str, object] = SERVER_DEFAULT,
    most_texts: int | None = None,
    quant: str | None = None,
    revision: str | None = None,
    tolerances: Mapping[str, float] | None = None,
    options: EngineOptions = DEFAULTS,
    progress: Progress = SILENT,
) -> ServedReport:
    """Compare a server with the reference on every token but the first of each text; phase "generated" begins there.

    steer: what steers the reference. request: the fields by which the server is asked for the same, as
    {"steering": "2 dense"} or {"model": "abacus+terse"}; none is its default. quant: the type whose tolerances hold;
    None is what the server says. Errors: EdgeSteerError for a server that gives no such figures.
    """
    server = Server(url)
    steering = tuple(one for one in steerings(steer) if one.strength)
    quant = quant or server.quant()
    if quant is None:
        raise EdgeSteerError(f"{url} does not say of what type its file is; name the type, such as Q8_0")
    tolerance = tolerance_of(quant, tolerances)
    with ExitStack() as stack:
        running = stack.enter_context(opened_reference(reference, revision, options, progress))
        tokenised = [text.tokens for text in tokenise_texts(texts, running) if len(text.tokens) > 1]
        tokenised = tokenised[:most_texts]
        if not tokenised:
            raise EdgeSteerError("no texts to compare on; at least one of two tokens is needed")
        running.check_comparable(max(map(len, tokenised)))
        words = _Words(running)
        unsteered = _side(server, running, tokenised, (), UNSTEERED, words, progress)
        steered = _side(server, running, tokenised, steering, request, words, progress) if steering else None
    effect = _effect(unsteered, steered) if steered else None
    findings = [divergence_finding("unsteered", unsteered.divergence, tolerance)]
    findings += _stated_finding("unsteered", unsteered, ())
    if steered and effect:
        findings.append(divergence_finding("steered", steered.divergence, tolerance))
        findings += _stated_finding("steered", steered, records_of(steering))
        findings += _effect_findings(effect, tolerance)
    sides = [side for side in (unsteered, steered) if side]
    return ServedReport(
        url, quant, tolerance, unsteered.divergence, steered.divergence if steered else None,
        tuple(side.delta_logprob for side in sides), effect, all(side.stated is not None for side in sides),
        tuple(findings),
    )  # fmt: skip


class _Words:
    """The reference's tokens as text within a text, and back where one token alone has that text."""

    def __init__(self, reference: Backend) -> None:
        self._reference = reference
        self._before = reference.encode("a", start=False)
        self._text_before = reference.decode(self._before)
        self._tokens: dict[str, int | None] = {}

    def text(self, token: int) -> str:
        return self._reference.decode((*self._before, token))[len(self._text_before) :]

    def tokens(self, texts: Mapping[str, float], vocabulary: int) -> dict[int, float]:
        if not self._tokens:
            for token in range(vocabulary):
                text = self.text(token)
                self._tokens[text] = None if text in self._tokens else token
        known = {self._tokens.get(text): logprob for text, logprob in texts.items()}
        return {token: logprob for token, logprob in known.items() if token is not None}


def _side(
    server: Server,
    reference: Backend,
    texts: Sequence[Tokens],
    steering: Sequence[Steering],
    fields: Mapping[str, object],
    words: _Words,
    progress: Progress,
) -> _Side:
    by_text, logprobs = [], []
    scored: ScoredText | None = None
    for tokens in progress.counted(f"comparing {'steered' if steering else 'unsteered'} texts", texts):
        scored = server.score(tokens, fields, TOP)
        rows = (row for piece in reference.logit_rows(tokens[:-1], 1, steering) for row in log_softmax(piece))
        positions = [_position(*one, words) for one in
                     zip(rows, tokens[1:], scored.logprobs, scored.top, strict=True)]  # fmt: skip
        kl, same, ours, theirs = np.array(positions).T
        by_text.append(Positions(kl, same, -theirs, -ours))
        logprobs.append((ours, theirs))
    return _Side(summarise(by_text), tuple(logprobs), scored.stated if scored else None)


def _position(
    row: Array, token: int, logprob: float, top: Mapping[str, float], words: _Words
) -> tuple[float, bool, float, float]:
    """KL, same first choice, the token's log-probability in the reference and in the server."""
    likeliest = {**words.tokens(top, len(row)), token: logprob}
    ours = np.exp(row[list(likeliest)].astype(np.float64))
    theirs = np.exp(np.array([*likeliest.values()]))
    p, q = (np.maximum([*side, 1 - side.sum()], LEAST) for side in (ours, theirs))
    same = max(top, key=lambda text: top[text]) == words.text(int(row.argmax()))
    return float((p * np.log(p / q)).sum()), same, float(row[token]), logprob


def _effect(unsteered: _Side, steered: _Side) -> LogprobEffect:
    """Errors: EdgeSteerError if the steering does nothing in the reference."""
    sums = []
    for before, after in zip(unsteered.logprobs, steered.logprobs, strict=True):
        ours, theirs = after[0] - before[0], after[1] - before[1]
        sums.append((ours @ theirs, ours @ ours, theirs @ theirs))
    by_text = np.array(sums)
    total = by_text.sum(axis=0)
    if not total[1] > 0:
        raise EdgeSteerError("the steering does nothing in the reference; give a strength other than 0")
    return LogprobEffect(
        float(_cosine(total)), over_texts(by_text, _cosine), float(_norm(total)), over_texts(by_text, _norm)
    )


def _cosine(sums: Any) -> Any:
    """0 where the server's change is none at all."""
    return sums[..., 0] / np.maximum(np.sqrt(sums[..., 1] * sums[..., 2]), 1e-30)


def _norm(sums: Any) -> Any:
    return np.sqrt(sums[..., 2] / sums[..., 1])


def _effect_findings(effect: LogprobEffect, tolerance: Tolerance) -> list[Finding]:
    return [
        finding("effect: cosine", effect.cosine, effect.cosine_interval, tolerance.cosine, at_most=False),
        finding("effect: length, at most", effect.norm, effect.norm_interval, 1 + tolerance.norm),
        finding("effect: length, at least", effect.norm, effect.norm_interval, 1 - tolerance.norm, at_most=False),
    ]


def _stated_finding(name: str, side: _Side, meant: Sequence[SteeringRecord]) -> list[Finding]:
    """How many vectors differ between what the server says it applied and what is meant; none if it does not say."""
    if side.stated is None:
        return []
    strange = list(side.stated)
    missing = 0
    for record in meant:
        match = next((one for one in strange if _one_steering(one, record)), None)
        if match:
            strange.remove(match)
        else:
            missing += 1
    return [finding(f"{name}: vectors stated otherwise", max(missing, len(strange)), None, 0, exact=True)]


def _one_steering(one: SteeringRecord, other: SteeringRecord) -> bool:
    same_strength = abs(one.strength - other.strength) <= SAME * abs(other.strength)
    return same_strength and (one.vector, one.layers, one.phase) == (other.vector, other.layers, other.phase)
