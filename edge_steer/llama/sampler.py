"""llama.cpp's sampler chain of one request: what its Sampling says, in its order, then the draw.

Takes a Sampling, gives tokens from a context's logits. The random state belongs to the request, not to its batch.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import llama_cpp

from edge_steer.core.errors import RequestError
from edge_steer.core.sampling import Link, Sampling
from edge_steer.llama.grammar import Candidates, Grammar, grammar_of

if TYPE_CHECKING:
    from edge_steer.llama.model import LlamaModel

Handle = Any  # struct llama_sampler *
MIROSTAT_WINDOW = 100  # m of the first mirostat: common/sampling.cpp, common_sampler_init


class LlamaSampler:
    """The chain of one request. Close it when the request ends."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], model: "LlamaModel") -> None:
        """Errors: RequestError for a grammar that cannot be read or a token that is not in the vocabulary."""
        _check_biases(sampling, model.vocab_size)
        grammar = grammar_of(sampling.json_schema) if sampling.json_schema else sampling.grammar
        self._grammar = Grammar(grammar, model) if grammar else None
        self._vocab_size = model.vocab_size
        self._handle = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for link in _chain(sampling, model):
            llama_cpp.llama_sampler_chain_add(self._handle, link)
        for token in prompt[-_looks_back(sampling) :] if _looks_back(sampling) else ():
            llama_cpp.llama_sampler_accept(self._handle, token)

    def sample(self, context: Any, row: int) -> int:
        """The next token from the logits of batch token `row` of a llama.cpp context, which must have been wanted.

        Errors: RequestError if the grammar lets no token of the vocabulary follow.
        """
        if self._grammar is None:
            return int(llama_cpp.llama_sampler_sample(self._handle, context, row))
        candidates = Candidates(llama_cpp.llama_get_logits_ith(context, row), self._vocab_size)
        token = self._drawn(candidates)
        if not self._grammar.allows(token):  # as llama.cpp's common_sampler_sample: the grammar first only if need be
            candidates = Candidates(llama_cpp.llama_get_logits_ith(context, row), self._vocab_size)
            self._grammar.apply(candidates)
            token = self._drawn(candidates)
            if not self._grammar.allows(token):
                raise RequestError("the grammar lets no token of this model follow here; the answer cannot go on")
        llama_cpp.llama_sampler_accept(self._handle, token)
        self._grammar.accept(token)
        return token

    def close(self) -> None:
        if self._handle:
            llama_cpp.llama_sampler_free(self._handle)
            self._handle = None
        if self._grammar:
            self._grammar.close()

    def _drawn(self, candidates: Candidates) -> int:
        llama_cpp.llama_sampler_apply(self._handle, ctypes.byref(candidates.array))
        return candidates.selected


def _chain(sampling: Sampling, model: "LlamaModel") -> list[Handle]:
    """The links in order; each belongs to the chain that it is added to."""
    links = [_logit_bias(sampling, model)] if sampling.logit_bias else []
    if sampling.mirostat:
        links.append(_temperature(sampling, model))
        links.append(_mirostat(sampling, model))
        return links
    links += [LINKS[name](sampling, model) for name in sampling.order if _active(name, sampling)]
    if sampling.temperature or sampling.dynamic_range:
        links.append(llama_cpp.llama_sampler_init_dist(sampling.seed))
    else:
        links.append(llama_cpp.llama_sampler_init_greedy())
    return links


def _active(name: Link, sampling: Sampling) -> bool:
    """Whether a link can change the choice; what only shortens the tail cannot when the choice is greedy."""
    greedy = not (sampling.temperature or sampling.dynamic_range)
    if name == "penalties":
        return sampling.penalises
    if name == "dry":
        return sampling.dry is not None
    if name == "xtc":
        return sampling.xtc is not None
    if name == "typical_p":
        return sampling.typical_p < 1
    return not greedy


def _logit_bias(sampling: Sampling, model: "LlamaModel") -> Handle:
    # llama_sampler_init_logit_bias(n_vocab, n_logit_bias, const llama_logit_bias * logit_bias)
    biases = [llama_cpp.llama_logit_bias(token, bias) for token, bias in sampling.logit_bias]
    array = (llama_cpp.llama_logit_bias * len(biases))(*biases)
    return llama_cpp.llama_sampler_init_logit_bias(model.vocab_size, len(biases), array)


def _penalties(sampling: Sampling, model: "LlamaModel") -> Handle:
    # llama_sampler_init_penalties(n_vocab, penalty_last_n, penalty_repeat, penalty_freq, penalty_present)
    return llama_cpp.llama_sampler_init_penalties(
        model.vocab_size,
        sampling.repeat_last_n,
        sampling.repeat_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )


def _dry(sampling: Sampling, model: "LlamaModel") -> Handle:
    # llama_sampler_init_dry(vocab, multiplier, base, allowed_length, penalty_last_n, const char ** seq_breakers, n)
    dry = sampling.dry
    assert dry
    breakers = (ctypes.c_char_p * len(dry.breakers))(*(text.encode() for text in dry.breakers))
    return llama_cpp.llama_sampler_init_dry(
        model.vocab, dry.multiplier, dry.base, dry.allowed_length, dry.last_n, breakers, len(dry.breakers)
    )


def _xtc(sampling: Sampling, model: "LlamaModel") -> Handle:
    xtc = sampling.xtc
    assert xtc
    return llama_cpp.llama_sampler_init_xtc(xtc.probability, xtc.threshold, sampling.min_keep, sampling.seed)


def _temperature(sampling: Sampling, model: "LlamaModel") -> Handle:
    if not sampling.dynamic_range:
        return llama_cpp.llama_sampler_init_temp(sampling.temperature)
    return llama_cpp.llama_sampler_init_temp_ext(
        sampling.temperature, sampling.dynamic_range, sampling.dynamic_exponent
    )


def _mirostat(sampling: Sampling, model: "LlamaModel") -> Handle:
    mirostat = sampling.mirostat
    assert mirostat
    if mirostat.version == 2:
        return llama_cpp.llama_sampler_init_mirostat_v2(sampling.seed, mirostat.tau, mirostat.eta)
    return llama_cpp.llama_sampler_init_mirostat(
        model.vocab_size, sampling.seed, mirostat.tau, mirostat.eta, MIROSTAT_WINDOW
    )


LINKS: dict[Link, Callable[[Sampling, "LlamaModel"], Handle]] = {
    "penalties": _penalties,
    "dry": _dry,
    "top_n_sigma": lambda sampling, _: llama_cpp.llama_sampler_init_top_n_sigma(sampling.top_n_sigma),
    "top_k": lambda sampling, _: llama_cpp.llama_sampler_init_top_k(sampling.top_k),
    "typical_p": lambda sampling, _: llama_cpp.llama_sampler_init_typical(sampling.typical_p, sampling.min_keep),
    "top_p": lambda sampling, _: llama_cpp.llama_sampler_init_top_p(sampling.top_p, sampling.min_keep),
    "min_p": lambda sampling, _: llama_cpp.llama_sampler_init_min_p(sampling.min_p, sampling.min_keep),
    "xtc": _xtc,
    "temperature": _temperature,
}


def _looks_back(sampling: Sampling) -> int:
    """How many tokens of the prompt the chain has to know."""
    penalties = sampling.repeat_last_n if sampling.penalises else 0
    return max(penalties, sampling.dry.last_n if sampling.dry else 0)


def _check_biases(sampling: Sampling, vocab_size: int) -> None:
    for token, _ in sampling.logit_bias:
        if not 0 <= token < vocab_size:
            raise RequestError(f"logit_bias names token {token}; the vocabulary has tokens 0..{vocab_size - 1}")
    if len({token for token, bias in sampling.logit_bias if bias == -math.inf}) >= vocab_size:
        raise RequestError("logit_bias forbids every token")
