"""A steered GGUF as a model of EleutherAI's lm-evaluation-harness: `lm_eval --model edge_steer` (the door to lm_eval).

Takes the harness's requests as text, gives its answers: texts and log-likelihoods. It needs no torch, and knows
nothing of tasks, metrics or results, which are the harness's.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from edge_steer.adapters.choice import choose_lora
from edge_steer.core.backend import PLAIN, Completion, EngineOptions, FlashAttention, KvType, Lora, Message, Request
from edge_steer.core.errors import ModelError, RequestError
from edge_steer.core.progress import Progress
from edge_steer.core.sampling import Sampling
from edge_steer.core.steering import Steering, described
from edge_steer.core.vector import Phase, parse_layers
from edge_steer.llama import chat_template
from edge_steer.llama.engine import Engine
from edge_steer.llama.library import system_info
from edge_steer.llama.model import LlamaModel
from edge_steer.models import quantize
from edge_steer.models.load import gguf_lora_of
from edge_steer.storage import digests
from edge_steer.storage.files import read_text
from edge_steer.vectors.steer import split_strength, steering_of_file

MAX_GEN_TOKS = 256  # the harness's own default
PARALLEL = 16
SAMPLING = {  # the harness's names, which are transformers', for what a request can ask
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
}
Pair = tuple[tuple[str, str] | None, list[int], list[int]]  # (context, continuation), and the ids of both
log = logging.getLogger(__name__)


class Log(Progress):
    """Notes go to the harness's log."""

    def note(self, text: str) -> None:
        log.info(text)


def run(arguments: Sequence[str]) -> None:
    """The harness's own command line, which now knows this model and takes it if none is named."""
    sys.argv = ["lm_eval", *with_model(arguments)]
    cli_evaluate()


def with_model(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--model edge_steer` behind them where they run an evaluation and name no model."""
    runs = bool(arguments) and (arguments[0] == "run" or arguments[0].startswith("-"))
    settled = {"--model", "-M", "--config", "-C", "--help", "-h"} & {word.partition("=")[0] for word in arguments}
    return [*arguments, *(["--model", "edge_steer"] if runs and not settled else [])]


@dataclass(frozen=True)
class ModelArguments:
    """What --model_args sets, besides the model.

    vector: FILE[:STRENGTH] or an export folder, used as it says where strength, layers or phase are not set.
    layers: as 3 or 1-5 or 1+2+7-9, a comma being taken. max_length: most positions of a prompt and its answer
    (default: the model's context). prefix_token_id: what text without a context is conditioned on (default: the
    begin token, else the end token). seed: of the first request that samples; the next one has the next. template:
    "none", or a file with a Jinja chat template in place of the model's; date: as EngineOptions has it. lora:
    ADAPTER[:SCALE], a folder of PEFT or a LoRA of llama.cpp.
    """

    vector: str | None = None
    strength: float | None = None
    layers: str | int | None = None
    phase: Phase | None = None
    max_length: int | None = None
    max_gen_toks: int = MAX_GEN_TOKS
    prefix_token_id: int | None = None
    parallel: int | None = None
    threads: int | None = None
    kv_type: KvType = "f16"
    flash_attention: FlashAttention = "auto"
    gpu_layers: int = -1
    seed: int = 0
    template: str | None = None
    date: str | None = None
    lora: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "ModelArguments":
        """Errors: ModelError for an argument that is none of these."""
        if unknown := [name for name in values if name not in {field.name for field in fields(cls)}]:
            raise ModelError(f"no model argument {', '.join(unknown)}; see docs/lm-eval.md for those there are")
        return cls(**values)

    def steering(self) -> tuple[Steering, ...]:
        """Errors: ModelError for a setting without a vector, VectorError."""
        if self.vector is None:
            if (self.strength, self.layers, self.phase) != (None, None, None):
                raise ModelError("strength, layers and phase need a vector")
            return ()
        layers = None if self.layers is None else parse_layers(str(self.layers).replace("+", ","))
        return (steering_of_file(self.vector, self.strength, layers, self.phase, progress=Log()),)

    def loaded(self, model: str) -> LlamaModel:
        """The model's file, with its chat template. Errors: EdgeSteerError."""
        template = self.template
        if template not in (None, PLAIN):
            template = read_text(str(template), "a Jinja chat template")
            chat_template.check_template(template)
        lora = self.adapter(model)
        return LlamaModel(quantize.gguf_for(model), self.gpu_layers, template=template, date=self.date, lora=lora)

    def adapter(self, model: str) -> Lora | None:
        """The adapter, as llama.cpp loads it. Errors: ModelError."""
        if self.lora is None:
            return None
        path, scale = split_strength(self.lora)
        return gguf_lora_of(choose_lora(path, 1.0 if scale is None else scale), model, Log())

    def engine_options(self, context: int, lora: Lora | None) -> EngineOptions:
        return EngineOptions(
            lora=lora,
            context=context,
            parallel=self.parallel or PARALLEL,
            threads=self.threads,
            kv_type=self.kv_type,
            flash_attention=self.flash_attention,
            gpu_layers=self.gpu_layers,
        )


@register_model("edge_steer")
class EdgeSteerLM(TemplateLM):  # type: ignore[misc]
    """One GGUF file, steered by at most one vector file; requests are batched by the engine."""

    def __init__(
        self,
        model: str,
        *,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **model_arguments: Any,
    ) -> None:
        """model, and what `ModelArguments` has, are what --model_args sets.

        batch_size above 1 is `parallel`. device: "cpu" keeps off a GPU; of any other llama.cpp uses what it finds, as
        the harness says cuda:0 where nobody asked. Errors: ModelError, VectorError, EdgeSteerError.
        """
        super().__init__()
        arguments = ModelArguments.of(model_arguments)
        if isinstance(batch_size, int) and batch_size > 1 and arguments.parallel is None:
            arguments = replace(arguments, parallel=batch_size)
        if device == "cpu":
            arguments = replace(arguments, gpu_layers=0)
        steering = arguments.steering()
        file = arguments.loaded(model)
        self.max_length = arguments.max_length or file.trained_context
        self.max_gen_toks = arguments.max_gen_toks
        # the last token is scored without being decoded
        self.engine = Engine(file, arguments.engine_options(self.max_length + 1, file.lora))
        self.engine.check_steering(steering)
        self._file = file
        self._steering = steering
        self._seed = arguments.seed
        self._prefix = _prefix(file) if arguments.prefix_token_id is None else arguments.prefix_token_id

    def close(self) -> None:
        self.engine.close()

    @property
    def eot_token_id(self) -> int:
        return self._prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        return list(self.engine.encode(string, start=add_special_tokens is not False))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers to (context, generation settings), each up to the first of its stop strings."""
        batch = [self._request(index, *instance.args) for index, instance in enumerate(requests)]
        with tqdm(total=len(batch), desc="edge-steer: generate_until", disable=disable_tqdm) as bar:

            def on_done(index: int, completion: Completion) -> None:
                bar.update()
                if completion.finish != "error":
                    self.cache_hook.add_partial("generate_until", requests[index].args, completion.text)

            completions = self.engine.generate(batch, on_done=on_done)
        if errors := [completion.error for completion in completions if completion.finish == "error"]:
            raise RequestError(f"{len(errors)} of {len(completions)} requests could not be served: {errors[0]}")
        return [completion.text for completion in completions]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts in nats, in windows of max_length that each score what is new."""
        windows: list[Pair] = []
        owners: list[int] = []
        for index, instance in enumerate(requests):
            tokens = self.tok_encode(instance.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(tokens, self._prefix, self.max_length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(index)
        sums = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[owner] += logprob
        for instance, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", instance.args, total)
        return sums

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether greedy decoding would give it.

        They are scored in the order of their tokens: what neighbours have in common is computed once.
        """
        scores: dict[int, tuple[float, bool]] = {}
        order = sorted(range(len(requests)), key=lambda index: requests[index][1] + requests[index][2])
        for index in tqdm(order, desc="edge-steer: loglikelihood", disable=disable_tqdm):
            texts, context, continuation = requests[index]
            if not 0 < len(continuation) <= self.max_length:
                raise RequestError(
                    f"a continuation of {len(continuation)} tokens; it must have 1 to {self.max_length} (max_length)"
                )
            context = self._cut(context, self.max_length + 1 - len(continuation))
            nll, greedy = self.engine.score([*context, *continuation], len(context), self._steering)
            scores[index] = -float(nll.sum()), bool(greedy.all())
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, scores[index])
        return [scores[index] for index in range(len(requests))]

    @property
    def tokenizer_name(self) -> str:
        """What the harness keys its cache of prompts by."""
        return self._file.path.stem

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's source. Errors: ModelError for one by name, which a GGUF's own template has not."""
        if isinstance(chat_template, str):
            raise ModelError(f"no chat template {chat_template!r}; --apply_chat_template takes no name here")
        return self._file.template if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text by the chat template; see LlamaModel.conversation."""
        messages = [Message(role=turn["role"], content=turn["content"]) for turn in chat_history]
        return self._file.conversation(messages, answer=add_generation_prompt)

    def get_model_info(self) -> dict[str, object]:
        """What the harness records with the results."""
        return {
            "model_sha": digests.digest(self._file.path),
            "model_name": self.engine.model.name,
            "steering": described(self._steering),
            "max_length": self.max_length,
            "parallel": self.engine.parallel,
            **system_info(),
        }

    def _request(self, index: int, context: str, settings: Mapping[str, Any]) -> Request:
        wanted = dict(normalize_gen_kwargs(dict(settings), self.max_gen_toks))
        stop = tuple(filter(None, wanted.pop("until")))
        room = wanted.pop("max_gen_toks")
        sampled = wanted.pop("do_sample")
        if strange := set(wanted) - set(SAMPLING):
            raise RequestError(
                f"no generation setting {sorted(strange)[0]}; allowed are until, max_gen_toks, do_sample, "
                + ", ".join(SAMPLING)
            )
        if not 0 < room < self.max_length:
            raise RequestError(f"max_gen_toks is {room}; it must be 1 to {self.max_length - 1}, below max_length")
        sampling = {SAMPLING[name]: value for name, value in wanted.items() if value is not None}
        if sampled:
            sampling = {"temperature": 1.0, **sampling, "seed": (sampling.get("seed", self._seed) + index) % 2**32}
        prompt = self._cut(self.tok_encode(context) or [self._prefix], self.max_length - room)
        return Request(tuple(prompt), room, self._steering, Sampling(**sampling), stop)

    def _cut(self, context: list[int], room: int) -> list[int]:
        """The end of a context too long for the room, as the harness's own models cut it."""
        if len(context) > room:
            log.warning("a context of %d tokens is cut to its last %d (max_length)", len(context), room)
        return context[max(0, len(context) - room) :]


def _prefix(file: LlamaModel) -> int:
    """The begin token, or without one the end token."""
    for name in ("bos", "eos"):
        if token := file.metadata.get(f"tokenizer.ggml.{name}_token_id"):
            return int(token)
    raise ModelError(f"{file.path} names no begin and no end token; set prefix_token_id")
