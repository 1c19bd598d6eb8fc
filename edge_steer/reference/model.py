"""The reference backend: any Hugging Face causal language model in PyTorch, steered and recorded by forward hooks.

The only door to transformers. Takes a folder or a hub id, token ids and steerings; gives token ids, text, arrays.
Weights are read from safetensors only. It knows nothing of llama.cpp, of pairs or of how vectors are made.
"""

import contextlib
import inspect
import math
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor

from edge_steer.core.architectures import departure, gguf_name, window
from edge_steer.core.backend import (
    Completion,
    Message,
    OnDone,
    OnStates,
    OnText,
    Recording,
    Request,
    SharedPrompt,
    Tokens,
)
from edge_steer.core.errors import ModelError, first_line, need
from edge_steer.core.runtime import Runtime
from edge_steer.core.stats import logsumexp
from edge_steer.core.steering import Offsets, Steering
from edge_steer.core.vector import Array, ModelIdentity
from edge_steer.reference.decoding import Run, choose, token_logprobs
from edge_steer.reference.hooks import SteeringRows, StopForward, find_blocks, hooked, hooks_that_show
from edge_steer.reference.packing import InputRows, Span, packed_states
from edge_steer.reference.precision import in_float64, use_threads
from edge_steer.reference.vocabulary import HubVocabulary, Vocabulary, named_end_tokens
from edge_steer.storage import digests, hub
from edge_steer.storage.hub import Snapshot
from edge_steer.storage.provenance import Provenance, versions

need("extract")
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}
LOGITS_BYTES = 2**27  # of float32 logits held at once


class Reference(Runtime):
    """A Hugging Face causal language model as a `Backend`, and the recorder vectors are extracted with."""

    def __init__(self, network: Any, vocabulary: Vocabulary, name: str, revision: str | None) -> None:
        """Wrap a loaded network; the vocabulary is closed with it.

        Errors: ModelError if its decoder blocks cannot be found.
        """
        config = network.config.get_text_config(decoder=True)
        accepted = inspect.signature(network.forward).parameters
        self._network = network.eval()
        self._vocabulary = vocabulary
        self._blocks = find_blocks(network, config.num_hidden_layers)
        self._model = ModelIdentity(name, gguf_name(config.model_type), config.hidden_size, len(self._blocks), revision)
        self._config = config.to_dict()
        self._vocab_size: int = config.vocab_size
        self._keeps_logits = "logits_to_keep" in accepted
        self._keeps_cache = "past_key_values" in accepted
        self.context: int = getattr(config, "max_position_embeddings", None) or sys.maxsize
        # A recurrent state, or a rotary base that depends on the longest row, makes a row depend on its batch.
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
        self.batchable = "position_ids" in accepted and not network._is_stateful and rope not in ("dynamic", "longrope")
        windows = (getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size"))
        self.window = min(filter(None, windows), default=self.context)

    @classmethod
    def load(
        cls,
        source: str | Path | Snapshot,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        threads: int | None = None,
        trust_remote_code: bool = False,
        template: str | None = None,
        date: str | None = None,
    ) -> Self:
        """Load a folder, a hub id at a revision, or files that hub.locate found, from safetensors.

        template, date: see EngineOptions. The identity's revision is the hub's commit, or for a folder a SHA-256 over
        its weights' digests. Errors: ModelError for a missing folder, a hub id that cannot be reached, a folder that
        holds no causal language model, weights that are missing or damaged, an unknown dtype or device.
        """
        if dtype not in DTYPES:
            raise ModelError(f"no dtype {dtype!r}; allowed are {', '.join(DTYPES)}")
        use_threads(threads)
        located = source if isinstance(source, Snapshot) else hub.locate(source, revision)
        transformers.utils.logging.disable_progress_bar()
        try:
            network, loading = transformers.AutoModelForCausalLM.from_pretrained(
                located.folder,
                dtype=DTYPES[dtype],
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
            )
            network.to(device)
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                located.folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
        except Exception as error:  # the files are the user's, and their readers raise what they like
            raise ModelError(f"{source} cannot be loaded as a causal language model: {first_line(error)}") from error
        if lacking := [*loading["missing_keys"], *loading["mismatched_keys"]]:
            rest = len(lacking) - 1
            raise ModelError(f"{source} lacks weights its config.json asks for: {lacking[0]} and {rest} more")
        ends = named_end_tokens(network.generation_config, network.config.get_text_config(decoder=True), tokenizer)
        vocabulary = HubVocabulary(tokenizer, ends, located.name, template, date)
        return cls(network, vocabulary, located.name, located.commit or digests.weights_digest(located.folder))

    @property
    def model(self) -> ModelIdentity:
        return self._model

    @property
    def network(self) -> Any:
        """The Hugging Face network itself, for gradients through it."""
        return self._network

    @property
    def blocks(self) -> list[torch.nn.Module]:
        """The decoder blocks: block N gives layer N."""
        return self._blocks

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def end_tokens(self) -> Collection[int]:
        return self._vocabulary.end_tokens

    @property
    def delimiters(self) -> Tokens:
        return self._vocabulary.delimiters

    @property
    def provenance(self) -> Provenance:
        """What this model's numbers depend on."""
        backend = {
            "name": "torch",
            "dtype": str(self._network.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
        chosen = {"template": self._vocabulary.other_template, "date": self._vocabulary.date}
        backend |= {name: value for name, value in chosen.items() if value}
        return Provenance(
            model={"name": self.model.name, "digest": self.model.revision},
            backend=backend,
            versions=versions("edge-steer", "torch", "transformers"),
        )

    def revise(self, revision: str) -> None:
        """Take another revision, after the weights were changed."""
        self._model = replace(self._model, revision=revision)

    def close(self) -> None:
        """Let go of the network, whose memory Python then frees."""
        self._network = None
        self._vocabulary.close()

    def check_steering(self, steering: Sequence[Steering]) -> None:
        self.offsets(steering)

    def check_comparable(self, longest: int) -> None:
        """See Backend.check_comparable."""
        if reason := departure(self._config):
            raise ModelError(f"{self.model.name} cannot be compared with its GGUF: {reason}")
        size = window(self._config)
        if size is not None and longest > size:
            raise ModelError(
                f"{self.model.name} attends to {size} tokens, in llama.cpp to all; a text to compare on has {longest}: "
                "give shorter ones"
            )

    def encode(self, text: str, *, start: bool = True) -> Tokens:
        return self._vocabulary.tokenize(text, add_special=start)

    def chat(self, messages: Sequence[Message]) -> Tokens:
        """See Backend.chat. Errors: ModelError if the model has no chat template or it refuses the messages."""
        return self._vocabulary.chat(messages)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._vocabulary.text(tokens)

    def generate(
        self,
        requests: Sequence[Request],
        on_text: OnText | None = None,
        on_done: OnDone | None = None,
        *,
        batch: int = 32,
    ) -> list[Completion]:
        """Continue every request, up to `batch` of like length at a time; see Backend.generate.

        Each row has its own steering, sampling and seed, so its answer does not depend on its batch.
        max_tokens is cut to the room the context leaves.
        """
        offsets = [self.offsets(request.steering) for request in requests]
        done: dict[int, Completion] = {}

        def finish(index: int, completion: Completion) -> None:
            done[index] = completion
            if on_done:
                on_done(index, completion)

        for index, request in enumerate(requests):
            if error := self.refusal(request):
                finish(index, Completion("", (), "error", error=error))
        waiting = [index for index in range(len(requests)) if index not in done]
        waiting.sort(key=lambda index: len(requests[index].prompt))
        size = batch if self.batchable else 1
        for first in range(0, len(waiting), size):
            runs = [
                Run(i, requests[i], offsets[i], self.room(requests[i]), self.decode, bool(on_text))
                for i in waiting[first : first + size]
            ]
            for run in self._complete(runs, on_text):
                finish(run.index, run.completion())
        return [done[index] for index in range(len(requests))]

    def refusal(self, request: Request) -> str:
        if names := request.sampling.llama_only:
            return f"PyTorch has no {', '.join(names)}; only llama.cpp samples so: leave it out, or run the model there"
        if request.loras is not None:
            return "PyTorch runs with the adapter the model was loaded with; name none, or run the model in llama.cpp"
        return super().refusal(request)

    def logit_rows(
        self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering] = (), recording: Recording | None = None
    ) -> Iterator[Array]:
        """See Backend.logit_rows."""
        if recording is not None:
            self.check_recording(recording, tokens)
        for rows in self._logit_rows(tokens, prompt, steering, recording):
            yield rows.float().cpu().numpy()

    def in_float64(self) -> contextlib.AbstractContextManager[None]:
        """Compute in float64 while it lasts, from the same weights."""
        return in_float64(self._network, self._blocks)

    def log_sum(self, logits: Array) -> npt.NDArray[np.float64]:
        return logsumexp(logits.astype(np.float64))

    def record(
        self,
        tokens: Sequence[int],
        layers: Sequence[int],
        positions: Sequence[int] | None = None,
        *,
        prompt: int | None = None,
        steering: Sequence[Steering] = (),
    ) -> dict[int, Array]:
        """See Backend.record."""
        prompt = len(tokens) if prompt is None else prompt
        self.check_text(tokens, prompt)
        self.model.check_layers(layers)
        chosen = range(len(tokens)) if positions is None else positions
        self.check_positions(chosen, tokens)
        seen: dict[int, Array] = {}

        def see(layer: int, states: Tensor) -> None:
            seen[layer] = states[0, list(chosen)].float().cpu().numpy()

        steering_rows = self._steering_rows([self.offsets(steering)], prompt)
        ids = self._tensor([tokens])
        steering_rows.before(ids)
        with hooked(self._blocks, steering_rows.hooks()):
            self._visit(layers, see, input_ids=ids)
        return seen

    def inputs(self, rows: InputRows) -> dict[str, Tensor]:
        """What the network takes for these rows."""
        inputs = {"input_ids": self._tensor(rows.ids)}
        if rows.positions is not None:
            inputs["position_ids"] = self._tensor(rows.positions)
        if rows.visible is not None:
            seen = torch.from_numpy(rows.visible).to(self._network.device)[:, None]
            mask = torch.zeros(seen.shape, dtype=self._network.dtype, device=seen.device)
            inputs["attention_mask"] = mask.masked_fill_(~seen, -math.inf)
        return inputs

    def pooled(self, rows: InputRows, targets: Sequence[Span], layers: Sequence[int]) -> Array:
        """Mean residual streams of a batch, unsteered: float32 (layers, targets, hidden).

        targets: the columns of a row that are averaged. No language-model head, and no block after the last layer, is
        run.
        """
        self.model.check_layers(layers)
        result = np.empty((len(layers), len(targets), self.model.hidden_size), dtype=np.float32)

        def see(layer: int, states: Tensor) -> None:
            means = [states[row, first:last].float().mean(0) for row, first, last in targets]
            result[layers.index(layer)] = torch.stack(means).cpu().numpy()

        self._visit(layers, see, **self.inputs(rows))
        return result

    def answer_states(
        self, prompts: Sequence[SharedPrompt], layers: Sequence[int], take: OnStates, *, batch_tokens: int = 1024
    ) -> None:
        """See Recorder.answer_states; answers share their prompt where the architecture can."""
        packed_states(self, prompts, layers, take, batch_tokens)

    @torch.inference_mode()
    def _complete(self, runs: list[Run], on_text: OnText | None) -> Iterator[Run]:
        """Drive one batch; a row leaves it, and is yielded, when it ends."""
        width = max(len(run.request.prompt) for run in runs)
        padding = [width - len(run.request.prompt) for run in runs]
        ids = self._tensor([[0] * pad + list(run.request.prompt) for pad, run in zip(padding, runs, strict=True)])
        left = self._tensor(padding)[:, None]
        steering_rows = self._steering_rows([run.offsets for run in runs], width)
        cache = None
        while runs:
            end = steering_rows.column + ids.shape[1]
            inputs: dict[str, Any] = {}
            if self.batchable and left.any():
                columns = torch.arange(end, device=ids.device)
                inputs["attention_mask"] = (columns >= left).long()
                inputs["position_ids"] = (columns[steering_rows.column :] - left).clamp_(min=0)
            output = self._forward(ids, steering_rows, 1, past_key_values=cache, use_cache=True, **inputs)
            cache, steering_rows.column = output.past_key_values, end
            logits = output.logits[:, -1].float()
            tokens = choose(logits, runs)
            for run, token, row in zip(runs, tokens, logits, strict=True):
                wanted = run.request.logprobs
                logprobs = None if wanted is None else token_logprobs(row, token, wanted)
                if (new := run.take(token, token in self._vocabulary.end_tokens, logprobs)) and on_text:
                    on_text(run.index, new)
            going = [i for i, run in enumerate(runs) if not run.finish]
            yield from (run for run in runs if run.finish)
            if len(going) < len(runs):
                runs = [runs[i] for i in going]
                rows = self._tensor(going)
                left = left[rows]
                steering_rows.keep(going)
                if runs:
                    cache.batch_select_indices(rows)
            ids = self._tensor([[tokens[i]] for i in going])

    @torch.inference_mode()
    def _logit_rows(
        self, tokens: Sequence[int], prompt: int, steering: Sequence[Steering], recording: Recording | None
    ) -> Iterator[Tensor]:
        """Logits from position prompt - 1 on, in pieces of at most LOGITS_BYTES that share a KV cache."""
        self.check_text(tokens, prompt)
        steering_rows = self._steering_rows([self.offsets(steering)], prompt)
        steering_rows.recording = recording
        ids = self._tensor([tokens])
        chunk = max(1, LOGITS_BYTES // (4 * self.vocab_size)) if self.batchable else len(tokens)
        ends = [*range(prompt - 1 + chunk, len(tokens), chunk), len(tokens)]
        cache = None
        for end in ends:
            keep = end - max(prompt - 1, steering_rows.column)
            part = ids[:, steering_rows.column : end]
            output = self._forward(part, steering_rows, keep, past_key_values=cache, use_cache=len(ends) > 1)
            cache, steering_rows.column = output.past_key_values, end
            yield output.logits[0, -keep:]

    def _forward(self, ids: Tensor, steering_rows: SteeringRows, keep: int, **inputs: Any) -> Any:
        """One steered pass; of the logits only the last `keep` columns are sure to be there."""
        if not self._keeps_cache:
            raise ModelError(f"{self.model.name} keeps its state otherwise than in a KV cache; run it as a GGUF")
        if self._keeps_logits:
            inputs["logits_to_keep"] = keep
        steering_rows.before(ids)
        with hooked(self._blocks, steering_rows.hooks()):
            return self._network(input_ids=ids, **inputs)

    @torch.inference_mode()
    def _visit(self, layers: Sequence[int], see: Callable[[int, Tensor], None], **inputs: Tensor) -> None:
        with hooked(self._blocks, hooks_that_show(layers, see)), contextlib.suppress(StopForward):
            self._network(use_cache=False, **inputs)

    def _steering_rows(self, rows: Sequence[Offsets | None], prompt: int) -> SteeringRows:
        return SteeringRows(rows, prompt, self.model.hidden_size, self._network.device)

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.int64), device=self._network.device)
