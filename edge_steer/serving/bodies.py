"""What clients send, as checked models: OpenAI's and llama-server's request bodies.

A field is honoured, or refused by name, or known to change no text; none is ignored silently. null is as if the field
were left out. It knows no engine; `questions.py` makes engine requests of bodies.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from edge_steer.core.backend import MAX_LOGPROBS
from edge_steer.core.sampling import MOST_SEED
from edge_steer.core.vector import Phase
from edge_steer.serving.replies import ApiError

MOST_STOPS = 64
B = TypeVar("B", bound=BaseModel)
Off = tuple[object, ...]


def check(body: type[B], raw: bytes) -> B:
    """The bytes of a request as a checked body, whatever its content type says. Errors: ApiError 400 or 501."""
    return _in_one_line(lambda: body.model_validate_json(raw or b"{}", strict=True))


def check_fields(body: type[B], fields: Mapping[str, object]) -> B:
    """Fields by name as a checked body. Errors: ApiError 400 or 501."""
    return _in_one_line(lambda: body.model_validate(fields, strict=True))


def _in_one_line(validate: Callable[[], B]) -> B:
    try:
        return validate()
    except pydantic.ValidationError as error:
        raise ApiError(400, _first_line(error)) from None


def _first_line(error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"] if str(part).replace("_", "a").isalnum() and not _is_type(part))
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}"
    if first["type"] == "extra_forbidden":
        return f"there is no field '{where[:80]}' in this request; leave it out"
    named = f"field '{where[:80]}': " if where else ""
    return named + first["msg"].removeprefix("Value error, ")


def _is_type(part: int | str) -> bool:
    """pydantic names the member of a union that it tried beside the field."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or part[:1].isupper())


class Body(BaseModel):
    """A JSON object. `harmless`: fields taken that change no text. `unsupported`: field -> values that mean off."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    harmless: ClassVar[frozenset[str]] = frozenset()
    unsupported: ClassVar[Mapping[str, Off]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        for name, off in cls.unsupported.items():
            if fields.get(name) is not None and not any(_same(fields[name], value) for value in off):
                raise ApiError(501, f"'{name}' is not supported by this server; leave it out")
        dropped = cls.harmless | cls.unsupported.keys()
        return {name: value for name, value in fields.items() if value is not None and name not in dropped}


def _same(given: object, value: object) -> bool:
    return type(given) is type(value) and given == value


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


Stops = Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], BeforeValidator(_as_list),
                  Field(max_length=MOST_STOPS)]  # fmt: skip
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
Bias = Annotated[list[int | str | float | bool], Field(min_length=2, max_length=2)]
Tokens = list[Annotated[int, Field(ge=0, lt=2**31)]]
Mixed = list[int | str]


class ControlVector(Body):
    """One vector of a request, by the name that it has on this server."""

    name: str
    scale: float | None = None
    layers: list[int] | str | None = None
    phase: Phase | None = None


class EasyVector(Body):
    """One vector as EasySteer's clients name it. Only steering of all positions, by addition, is held here."""

    unsupported: ClassVar[Mapping[str, Off]] = {
        "source": (),
        "data": (),
        "algorithm": ("direct",),
        "normalize": (False,),
        "params": ({},),
        "apply": ({}, {"prompt": "all", "generation": "all"}),
    }
    name: str
    scale: float | None = None
    layers: list[int] | str | None = None


class EasySteering(Body):
    """EasySteer's `steering` of a request."""

    harmless: ClassVar[frozenset[str]] = frozenset({"debug"})
    unsupported: ClassVar[Mapping[str, Off]] = {"conflict": ("priority", "sequential", "error")}
    vectors: list[EasyVector]


class ScaledLora(Body):
    """An adapter by its number, as llama-server has it."""

    id: int
    scale: float


class Steered(Body):
    """What every request says of the model, its adapters and its steering."""

    model: str = ""
    lora: list[ScaledLora] | None = None
    control_vectors: list[ControlVector] | None = None
    steering: EasySteering | str | None = None

    @model_validator(mode="after")
    def _one_steering(self) -> Self:
        if self.control_vectors is not None and self.steering is not None:
            raise ValueError("'control_vectors' and 'steering' are two ways to say one thing; give one of them")
        return self


class StreamOptions(Body):
    harmless = frozenset({"include_obfuscation"})
    include_usage: bool = False


class Generating(Steered):
    """The fields of every request that generates text, with llama-server's names and defaults."""

    harmless = frozenset(
        {
            "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "n_cache_reuse",
            "id_slot", "n_keep", "n_discard", "sse_ping_interval", "parallel_tool_calls", "return_tokens",
            "chat_format", "parse_tool_calls", "preserved_tokens", "backend_sampling",
        }
    )  # fmt: skip
    unsupported = {
        "adaptive_target": (-1, -1.0),
        "adaptive_decay": (),
        "grammar_lazy": (False,),
        "grammar_triggers": ([],),
        "n_indent": (0,),
        "reasoning_budget_tokens": (-1,),
        "reasoning_control": (False,),
        "post_sampling_probs": (False,),
        "t_max_predict_ms": (0, -1),
    }
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    max_tokens: int = Field(default=-1, ge=-1)
    n: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.8, ge=0)
    top_k: int = 40
    top_p: float = Field(default=0.95, ge=0)
    min_p: float = Field(default=0.05, ge=0, le=1)
    typical_p: float = Field(default=1.0, ge=0)
    top_n_sigma: float = -1.0
    xtc_probability: float = Field(default=0.0, ge=0, le=1)
    xtc_threshold: float = Field(default=0.1, ge=0, le=1)
    dynatemp_range: float = Field(default=0.0, ge=0)
    dynatemp_exponent: float = 1.0
    repeat_last_n: int = Field(default=64, ge=-1, lt=2**20)
    repeat_penalty: float = Field(default=1.0, gt=0)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = Field(default=2, ge=0, lt=2**20)
    dry_penalty_last_n: int = Field(default=-1, ge=-1, lt=2**20)
    dry_sequence_breakers: list[str] | None = Field(default=None, max_length=100)
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    min_keep: int = Field(default=0, ge=0, lt=2**20)
    samplers: list[str] | None = Field(default=None, max_length=100)
    seed: int = Field(default=-1, ge=-1, le=MOST_SEED)
    logit_bias: dict[str, float | bool] | list[Bias] = Field(default_factory=dict)
    ignore_eos: bool = False
    stop: Stops = Field(default_factory=list)
    grammar: str = ""
    json_schema: dict[str, Any] | None = None
    timings_per_token: bool = False
    cache_prompt: bool = True
    return_progress: bool = False
    verbose: bool = False

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, fields: Any) -> Any:
        """llama-server's and OpenAI's other names of one field."""
        if not isinstance(fields, dict):
            return fields
        fields = dict(fields)
        for name, others in {"max_tokens": ("max_completion_tokens", "n_predict"), "n": ("n_cmpl",)}.items():
            for other in others:
                value = fields.pop(other, None)
                if value is not None and fields.setdefault(name, value) not in (None, value):
                    raise ValueError(f"'{name}' and '{other}' are one thing and differ; give one of them")
        return fields


class JsonSchema(Body):
    harmless = frozenset({"name", "description", "strict"})
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    json_schema: JsonSchema | None = None

    @property
    def demanded(self) -> dict[str, Any] | None:
        """The schema that the answer has to obey; None for any text."""
        if self.type == "text":
            return None
        nested = self.json_schema.schema_ if self.json_schema else None
        return self.schema_ or nested or {"type": "object"}


class TextPart(Body):
    """A part of a message; images and sounds are refused."""

    harmless = frozenset({"cache_control"})
    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and isinstance(kind := fields.get("type"), str) and kind != "text":
            raise ApiError(501, f"messages with parts of type '{kind[:40]}' are not supported; only text is")
        return fields


class ChatMessage(Body):
    """One message of a conversation; which roles there are is the chat template's matter."""

    harmless = frozenset({"refusal", "annotations", "id"})
    unsupported = {"tool_calls": ([],), "function_call": (), "audio": (), "images": ([],)}
    role: str = Field(max_length=100)
    content: str | list[TextPart] = ""
    name: str | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    def plain(self) -> dict[str, str]:
        """As a chat template takes it."""
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        others = {"name": self.name, "tool_call_id": self.tool_call_id, "reasoning_content": self.reasoning_content}
        return {"role": self.role, "content": content} | {key: text for key, text in others.items() if text is not None}


class Conversation(Body):
    """What a chat template needs."""

    unsupported = {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none",),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "verbosity": (),
        "thinking_budget_tokens": (-1,),
        "reasoning_format": ("none", "auto"),
    }
    messages: list[ChatMessage] = Field(min_length=1)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    reasoning_effort: str | None = None

    @model_validator(mode="after")
    def _one_end(self) -> "Conversation":
        if self.add_generation_prompt and self.continue_final_message:
            raise ValueError("'add_generation_prompt' and 'continue_final_message' cannot both be true")
        if self.continues and [message.role for message in self.messages[-2:]] == ["assistant", "assistant"]:
            raise ValueError("'messages' end in two of the assistant; only one can be gone on with")
        return self

    @property
    def continues(self) -> bool:
        """Whether the last message is the beginning of the answer."""
        if self.continue_final_message is not None:
            return self.continue_final_message
        return not self.add_generation_prompt and self.messages[-1].role == "assistant"

    @property
    def variables(self) -> dict[str, Any]:
        """What the template is told besides the messages."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        thinking = {"enable_thinking": False} if self.reasoning_effort == "none" else {}
        return {**effort, **thinking, **self.chat_template_kwargs}


class ChatBody(Conversation, Generating):
    """POST /v1/chat/completions."""

    harmless = Generating.harmless
    unsupported = {**Generating.unsupported, **Conversation.unsupported, "echo": (False,)}
    response_format: ResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: Logprobs | None = None

    @model_validator(mode="after")
    def _top_of_logprobs(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs' to be true")
        return self


class ScoredChatBody(Conversation, Steered):
    """POST /v1/chat/logprobs. answer: the tokens to score, as they follow the conversation."""

    answer: Tokens = Field(min_length=1)
    top_logprobs: Logprobs = 0


class PromptString(Body):
    """A prompt as llama-server also takes it, in an object that could hold images beside the text."""

    unsupported: ClassVar[Mapping[str, Off]] = {"multimodal_data": ([],)}
    prompt_string: str


class CompletionBody(Generating):
    """POST /v1/completions."""

    unsupported = {**Generating.unsupported, "suffix": ("",), "best_of": (1,)}
    prompt: str | PromptString | Tokens | Mixed | list[str | PromptString | Mixed]
    echo: bool = False
    logprobs: Logprobs | None = None
    response_format: ResponseFormat | None = None


class NativeBody(Generating):
    """POST /completion, llama-server's own."""

    prompt: str | PromptString | Tokens | Mixed | list[str | PromptString | Mixed]
    n_probs: Logprobs = 0
    response_fields: list[str] | None = None


class TemplateBody(Conversation):
    harmless = frozenset({"model"})


class TokenizeBody(Body):
    content: str = ""
    add_special: bool = False
    parse_special: Literal[True] = True
    with_pieces: bool = False


class DetokenizeBody(Body):
    tokens: Tokens = Field(default_factory=list)


class LoadVector(Body):
    """A vector to load while the server runs."""

    name: str
    path: str
    scale: float | None = None


class UnloadVector(Body):
    id: int | None = None
    name: str | None = None
