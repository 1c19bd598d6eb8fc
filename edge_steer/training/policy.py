"""The policy in PyTorch: log-probabilities of sampled answers, and the gradient of the loss in what is trained.

Takes a Reference, a Trainable and a graded batch, gives figures of the step; the gradient is left in the trained
parameters. It draws no answers and makes no step.
"""

import contextlib
import functools
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor

from edge_steer.core.errors import EdgeSteerError, ModelError, first_line
from edge_steer.core.stats import Floats
from edge_steer.reference.packing import InputRows, pack
from edge_steer.training.advantages import normaliser
from edge_steer.training.rollouts import Rollout
from edge_steer.training.settings import RlooSettings
from edge_steer.training.trainables import Trainable

if TYPE_CHECKING:
    from edge_steer.reference.model import Reference

Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)


@dataclass(frozen=True)
class GradientOptions:
    """How PyTorch computes a gradient, and what that may cost.

    batch_tokens: positions that go through the network at once, or one answer where that is longer. checkpointing:
    compute each block again for the gradient, and keep only what goes in: less memory, a third more time. device: where
    PyTorch computes, as "cuda"; None is where the network is. dtype: the number type of the weights and of matrix
    products. In bfloat16 they take half the memory and, where the processor multiplies it, a fraction of the time; the
    residual stream, what is trained and the loss stay float32. Only this changes the gradient, by rounding.
    Errors: EdgeSteerError for another dtype; ModelError for a device that PyTorch has not.
    """

    batch_tokens: int = 2048
    checkpointing: bool = False
    device: str | None = None
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise EdgeSteerError(f"no dtype {self.dtype!r} for a gradient; there are {' and '.join(DTYPES)}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"PyTorch cannot use the device {self.device!r}: {first_line(error)}") from None

    @property
    def number_type(self) -> torch.dtype:
        number_type: torch.dtype = getattr(torch, self.dtype)
        return number_type


DEFAULTS = GradientOptions()


@dataclass(frozen=True)
class Gap:
    """How far the sampler is from the policy, over tokens: mean |difference| of log-probabilities, divergence of the
    sampler from the policy (estimator k3), share of ratios beyond 1/2 to 2."""

    mean: float
    kl: float
    outside: float


@dataclass(frozen=True)
class GradientFigures:
    """How a gradient came about, over the tokens it is of: all, or those of answers that differ in reward.

    loss: its value. apart: log-probability under PyTorch less that under the engine, of each token. kl: divergence
    from the untrained model, nats a token (estimator k3); None where it has no part in the loss.
    """

    loss: float
    apart: Floats
    kl: float | None = None

    @property
    def gap(self) -> Gap | None:
        """None where no answer has a part in the gradient."""
        if not self.apart.size:
            return None
        size, divergence = np.abs(self.apart), np.exp(self.apart) - 1 - self.apart
        return Gap(float(size.mean()), float(divergence.mean()), float((size > np.log(2)).mean()))


@dataclass(frozen=True)
class _Terms:
    """Of each token: its part in the loss, how far it is apart, its divergence; none where that does not count."""

    losses: Tensor
    apart: Tensor
    divergences: Tensor


class Policy:
    """A network with what is trained of it."""

    def __init__(self, reference: "Reference", trained: Trainable, options: GradientOptions = DEFAULTS) -> None:
        self._reference, self._trained, self._options = reference, trained, options
        self._network = reference.network
        self._keeps_logits = "logits_to_keep" in inspect.signature(self._network.forward).parameters

    @property
    def device(self) -> torch.device:
        device: torch.device = self._network.device
        return device

    @property
    def vocab_size(self) -> int:
        return self._reference.vocab_size

    @property
    def parameters(self) -> Iterator[Tensor]:
        """Of the network."""
        parameters: Iterator[Tensor] = self._network.parameters()
        return parameters

    def logprobs(self, rollouts: Sequence[Rollout], *, trained: bool = True) -> list[Floats]:
        """Of each token of each answer, in nats. trained: False is the model as it was."""
        result: dict[int, Floats] = {}
        with torch.no_grad():
            for places in self._batches(rollouts):
                rows = [rollouts[place] for place in places]
                flat = self.token_logprobs(rows, trained=trained).double().cpu().numpy()
                ends = np.cumsum([len(row.tokens) for row in rows])[:-1]
                result.update(zip(places, np.split(flat, ends), strict=True))
        return [result[place] for place in range(len(rollouts))]

    def gradient(self, rollouts: Sequence[Rollout], advantages: Floats, settings: RlooSettings) -> GradientFigures:
        """Leave the gradient of the loss in the trained parameters.

        loss = -1/Z sum_i a_i sum_t w_t log pi(y_t) + kl/Z sum_t k3(y_t), with Z as `advantages.normaliser` has it and
        w_t = min(pi(y_t) / pi_engine(y_t), importance_cap), through which no gradient goes. advantages: float64
        (rollouts,). Answers without an advantage are left out unless kl has a part.
        """
        for parameter in self._trained.parameters:
            parameter.grad = torch.zeros_like(parameter)
        divisor = normaliser([len(rollout.tokens) for rollout in rollouts], settings.loss)
        useful = [place for place in range(len(rollouts)) if advantages[place] or settings.kl]
        losses, divergences, apart = [0.0], [np.empty(0)], [np.empty(0)]
        for batch in self._batches([rollouts[place] for place in useful]):
            places = [useful[index] for index in batch]
            terms = self._terms([rollouts[place] for place in places], advantages[places], settings)
            loss = terms.losses.sum() / divisor
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
            apart.append(terms.apart.double().cpu().numpy())
            divergences.append(terms.divergences.detach().double().cpu().numpy())
        kl = float(np.concatenate(divergences).mean()) if settings.kl else None
        return GradientFigures(sum(losses), np.concatenate(apart), kl)

    def _terms(self, rows: Sequence[Rollout], advantages: Floats, settings: RlooSettings) -> "_Terms":
        """What each token of the rows adds to the loss, before it is divided."""
        logprobs = self.token_logprobs(rows)
        apart = logprobs.detach() - self._flat([row.logprobs for row in rows])
        weights = self._flat([[one] * len(row.tokens) for one, row in zip(advantages, rows, strict=True)])
        if settings.importance_cap:
            weights = weights * apart.exp().clamp(max=settings.importance_cap)
        losses = -weights * logprobs
        if not settings.kl:
            return _Terms(losses, apart, torch.empty(0))
        with torch.no_grad():
            untrained = self.token_logprobs(rows, trained=False)
        divergences = (untrained - logprobs).exp() - (untrained - logprobs) - 1
        return _Terms(losses + settings.kl * divergences, apart, divergences)

    def token_logprobs(self, rows: Sequence[Rollout], *, trained: bool = True) -> Tensor:
        """Log-probabilities of the rows' tokens, one row behind the other, to be derived: float32 (tokens,).

        Where all rows answer one prompt, it goes through the network once. trained: as `logprobs` has it.
        """
        shared = self._reference.batchable and len(rows) > 1 and len({row.prompt for row in rows}) == 1
        with self._trained.in_force() if trained else self._trained.untrained(), self._checkpointed(), self._mixed():
            logits = self._behind_one_prompt(rows) if shared else self._behind_own_prompts(rows)
            targets = torch.tensor([token for row in rows for token in row.tokens], device=self.device)
            return -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")

    def _behind_own_prompts(self, rows: Sequence[Rollout]) -> Tensor:
        """Logits that predict the rows' tokens: (tokens, vocabulary).

        Rows are filled up on the right, which what comes before does not see.
        """
        width = max(row.length for row in rows)
        first = min(len(row.prompt) for row in rows) - 1
        ids = [[*row.prompt, *row.tokens][:-1] + [row.prompt[0]] * (width - row.length) for row in rows]
        used = np.zeros((len(rows), width), dtype=np.bool_)
        for line, row in zip(used, rows, strict=True):
            line[len(row.prompt) - 1 : row.length] = True
        logits = self._logits(InputRows(np.array(ids)), first)
        return logits[torch.from_numpy(used[:, first:]).to(self.device)]

    def _behind_one_prompt(self, rows: Sequence[Rollout]) -> Tensor:
        """The same where all rows have one prompt, which the answers share in a row."""
        prompt, fed = rows[0].prompt, [row.tokens[:-1] for row in rows]
        logits = self._logits(pack([(prompt, fed)]), len(prompt) - 1)[0]
        columns, end = list[int](), 1  # the first one, of the prompt's last token, predicts how each answer begins
        for row, tokens in zip(rows, fed, strict=True):
            columns += [0, *range(end, end + len(tokens))][: len(row.tokens)]
            end += len(tokens)
        return logits[torch.tensor(columns, device=self.device)]

    def _logits(self, rows: InputRows, first: int) -> Tensor:
        """Of the columns from `first` on: (rows, columns, vocabulary)."""
        keep = rows.ids.shape[1] - first
        keeping = {"logits_to_keep": keep} if self._keeps_logits else {}
        logits: Tensor = self._network(**self._reference.inputs(rows), use_cache=False, **keeping).logits
        return logits[:, -keep:]

    def _mixed(self) -> AbstractContextManager[object]:
        """Matrix products in the options' number type, whatever it is that they multiply."""
        number_type = self._options.number_type
        return torch.autocast(self.device.type, number_type, enabled=number_type != torch.float32)

    @contextlib.contextmanager
    def _checkpointed(self) -> Iterator[None]:
        """Blocks that are computed again for the gradient. What a hook adds comes behind that."""
        if not (self._options.checkpointing and torch.is_grad_enabled()):
            yield
            return
        blocks = self._reference.blocks
        for block in blocks:
            block.forward = functools.partial(torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=False)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    def _batches(self, rollouts: Sequence[Rollout]) -> Iterator[list[int]]:
        """Answers to one prompt, or of like length; the longest first, so that too little memory shows at once."""
        answers = Counter(row.prompt for row in rollouts)

        def order(place: int) -> tuple[Any, ...]:
            row = rollouts[place]
            return (-len(row.prompt), row.prompt, -row.length) if answers[row.prompt] > 1 else (1, -row.length)

        batch: list[int] = []
        size = 0
        for place in sorted(range(len(rollouts)), key=order):
            row, first = rollouts[place], rollouts[(batch or [place])[0]]
            shared = answers[first.prompt] > 1
            size += len(row.tokens) if shared and batch else first.length
            most = min(self._options.batch_tokens, self._reference.window) if shared else self._options.batch_tokens
            apart = (shared and row.prompt != first.prompt) or not self._reference.batchable
            if batch and (size > most or apart):
                yield batch
                batch, size = [], row.length
            batch.append(place)
        if batch:
            yield batch

    def _flat(self, rows: Sequence[Sequence[float]]) -> Tensor:
        return torch.tensor(np.concatenate(rows), dtype=torch.float32, device=self._network.device)
