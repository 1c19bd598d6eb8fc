"""llama.cpp's sampler chain of one request: penalties, top-k, top-p, min-p, temperature, then a seeded draw.

Takes a Sampling, gives tokens from a context's logits. The random state belongs to the request, not to its batch.
"""

from collections.abc import Sequence
from typing import Any

import llama_cpp

from edge_steer.core.backend import Sampling


class LlamaSampler:
    """The chain of one request. Close it when the request ends."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab_size: int) -> None:
        self._handle = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        if sampling.penalises:
            # llama_sampler_init_penalties(n_vocab, penalty_last_n, penalty_repeat, penalty_freq, penalty_present)
            self._link(
                llama_cpp.llama_sampler_init_penalties(
                    vocab_size,
                    sampling.repeat_last_n,
                    sampling.repeat_penalty,
                    sampling.frequency_penalty,
                    sampling.presence_penalty,
                )
            )
        if sampling.temperature:
            self._link(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
            self._link(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
            self._link(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
            self._link(llama_cpp.llama_sampler_init_temp(sampling.temperature))
            self._link(llama_cpp.llama_sampler_init_dist(sampling.seed))
        else:
            self._link(llama_cpp.llama_sampler_init_greedy())
        if sampling.penalises:
            for token in prompt[-sampling.repeat_last_n :]:
                llama_cpp.llama_sampler_accept(self._handle, token)

    def sample(self, context: Any, row: int) -> int:
        """The next token from the logits of batch token `row` of a llama.cpp context, which must have been wanted."""
        return int(llama_cpp.llama_sampler_sample(self._handle, context, row))

    def close(self) -> None:
        if self._handle:
            llama_cpp.llama_sampler_free(self._handle)
            self._handle = None

    def _link(self, sampler: Any) -> None:
        llama_cpp.llama_sampler_chain_add(self._handle, sampler)
