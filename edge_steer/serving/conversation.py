"""A conversation whose steering can be changed between two answers: history, comparison, files, figures.

Takes messages and vectors by name, gives completions piece by piece. It knows no terminal and no HTTP.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Protocol, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from edge_steer.core.backend import Completion, Message, OnText, Piece, Request, Tokens
from edge_steer.core.errors import EdgeSteerError, RequestError, VectorError
from edge_steer.core.sampling import GREEDY, Sampling
from edge_steer.core.steering import Steering
from edge_steer.core.vector import ModelIdentity, Phase
from edge_steer.storage.files import readable, write_json
from edge_steer.vectors.named import Applied, NamedVectors

Role = Literal["system", "user", "assistant"]
MAX_TOKENS = 1024  # of an answer, where nothing else is said
FORMAT: Literal["edge-steer conversation 1"] = "edge-steer conversation 1"


class ChatEngine(Protocol):
    """What a conversation needs of an engine; one that keeps its cache computes only what is new in each turn."""

    context: int

    @property
    def model(self) -> ModelIdentity: ...

    def check_steering(self, steering: Sequence[Steering]) -> None: ...

    def chat(self, messages: Sequence[Message]) -> Tokens: ...

    def submit(
        self,
        request: Request,
        *,
        on_piece: Callable[[Piece], object] | None = None,
        on_done: Callable[[Completion], object] | None = None,
    ) -> int: ...

    def cancel(self, ticket: int) -> None: ...

    def step(self) -> bool: ...


@dataclass(frozen=True)
class Exchange:
    """A message of the user and the answer to it."""

    question: str
    answer: str


@dataclass(frozen=True)
class Comparison:
    """Two answers to one message, from one batch."""

    unsteered: Completion
    steered: Completion


@dataclass(frozen=True)
class ChatFigures:
    """What answers took, added up: prompt tokens computed and taken from the cache, tokens generated, seconds."""

    answers: int = 0
    computed: int = 0
    reused: int = 0
    generated: int = 0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0

    def plus(self, request: Request, completion: Completion) -> "ChatFigures":
        """These figures with those of one more answer."""
        timings = completion.timings
        return ChatFigures(
            self.answers + 1,
            self.computed + len(request.prompt) - timings.reused,
            self.reused + timings.reused,
            self.generated + len(completion.tokens),
            self.prompt_seconds + timings.prompt,
            self.generation_seconds + timings.generation,
        )

    @property
    def tokens_per_second(self) -> float:
        """The first token of each answer comes with its prompt and is not counted."""
        after_first = self.generated - self.answers
        return after_first / self.generation_seconds if after_first > 0 and self.generation_seconds else 0.0


NO_FIGURES = ChatFigures()


class Conversation:
    """One chat with one engine. A message that cannot be answered leaves it as it was.

    `exchanges` is the history, oldest first. `system`: the system message, "" is none. `last`: figures of the last
    answer, `total`: of all. System message, sampling and max_tokens may be set.
    """

    def __init__(
        self,
        engine: ChatEngine,
        vectors: NamedVectors | None = None,
        *,
        system: str = "",
        sampling: Sampling = GREEDY,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        """vectors: those it can be steered by; their default steers at first. Errors: VectorError, ModelError."""
        self._engine = engine
        self._vectors = vectors or NamedVectors(engine.model)
        self.system, self.sampling, self.max_tokens = system, sampling, max_tokens
        self.exchanges: list[Exchange] = []
        self.last = self.total = NO_FIGURES
        self._tickets: list[int] = []
        at_first = {applied.name for applied in self._vectors.default}
        tuned = {vector.name: vector.as_tuned for vector in self._vectors.vectors}
        self._set({name: one if name in at_first else replace(one, strength=0.0) for name, one in tuned.items()})

    @property
    def vectors(self) -> tuple[Applied, ...]:
        """Every vector as it is set, those of strength 0 included."""
        return tuple(Applied(name, steering) for name, steering in self._steering.items())

    @property
    def steering(self) -> tuple[Applied, ...]:
        """What steers the next answer."""
        return tuple(applied for applied in self.vectors if applied.steering.strength)

    @property
    def messages(self) -> list[Message]:
        """The history as messages, the system message first."""
        return self._messages(self.exchanges)

    def steer(
        self, name: str | None = None, *, strength: float | None = None, layers: Sequence[int] | None = None
    ) -> None:
        """Change a vector's strength or layers from the next answer on; None stays as it is.

        name: None is the vectors that steer, or all if none does; a strength needs that to be one.
        Errors: VectorError, and nothing is changed.
        """
        names = [self._vectors.get(name).name] if name else self._meant()
        if strength is not None and len(names) > 1:
            raise VectorError(f"there are several vectors: {', '.join(names)}; name the one whose strength is meant")
        changed = dict(self._steering)
        for name in names:
            before = changed[name]
            changed[name] = Steering(
                before.vector,
                before.strength if strength is None else strength,
                before.layers if layers is None else tuple(layers),
                before.phase,
            )
        self._set(changed)

    def set_phase(self, phase: Phase) -> None:
        """Set the phase of all vectors, which is one in a request. Errors: VectorError."""
        self._set({name: replace(one, phase=phase) for name, one in self._steering.items()})

    def restore(self, name: str) -> None:
        """Put a vector to use as tuned, with the strength it was named with. Errors: VectorError."""
        self._set({**self._steering, name: self._vectors.get(name).as_tuned})

    def say(self, text: str, on_text: Callable[[str], None] | None = None) -> Completion:
        """Answer a message and take both into the history. on_text is called with each new piece of the answer.

        An answer that was stopped is taken as far as it came; one without text leaves no trace.
        Errors: RequestError if the message cannot be answered.
        """
        show = None if on_text is None else lambda _index, piece: on_text(piece)
        [completion] = self._answer([self._request(text, self.exchanges)], show)
        self._take(self.exchanges, text, completion)
        return completion

    def compare(self, text: str | None = None, on_text: OnText | None = None) -> Comparison:
        """Answer a message unsteered and steered at the same time; the steered answer goes into the history.

        text: None is the last message again, whose answer is replaced. on_text is called with 0 and each new piece of
        the unsteered answer, with 1 and those of the steered. Errors: RequestError, VectorError if nothing steers.
        """
        if not self.steering:
            raise VectorError("nothing steers this conversation; give a vector a strength to compare it")
        if text is None and not self.exchanges:
            raise RequestError("no message yet; say one to compare its answers")
        before = self.exchanges if text is not None else self.exchanges[:-1]
        question = text if text is not None else self.exchanges[-1].question
        request = self._request(question, before)
        comparison = Comparison(*self._answer([replace(request, steering=()), request], on_text))
        self._take(before, question, comparison.steered)
        return comparison

    def stop(self) -> None:
        """End the running answer before its next token, with finish "cancelled". Any thread or signal handler may."""
        for ticket in self._tickets:
            self._engine.cancel(ticket)

    def clear(self) -> None:
        """Forget the history; system message and steering stay."""
        self.exchanges = []

    def save(self, path: str | Path) -> Path:
        """Write messages, steering and sampling as JSON, the whole file or none; the path. Errors: EdgeSteerError."""
        saved = SavedConversation(
            FORMAT,
            self._engine.model.name,
            tuple(SavedMessage(cast("Role", message["role"]), message["content"]) for message in self.messages),
            tuple(SavedSteering.of(applied) for applied in self.steering),
            self.sampling,
            self.max_tokens,
        )
        return write_json(path, asdict(saved))

    def load(self, path: str | Path) -> None:
        """Go on with a saved conversation: its messages, steering and sampling.

        Errors: EdgeSteerError for another file, a vector that is not here or is another one; nothing is changed then.
        """
        saved = _read(Path(path))
        system, exchanges = saved.history(Path(path))
        steering = {name: replace(one, strength=0.0) for name, one in self._steering.items()}
        for one in saved.steering:
            vector = self._vectors.get(one.name).vector
            if vector.digest != one.digest:
                raise VectorError(
                    f"{path} is steered by a vector {one.name} of digest {one.digest[:12]}; "
                    f"{one.name} here has {vector.digest[:12]}"
                )
            steering[one.name] = Steering(vector, one.strength, one.layers, one.phase)
        self._set(steering)
        self.system, self.exchanges = system, exchanges
        self.sampling, self.max_tokens = saved.sampling, saved.max_tokens

    def _set(self, steering: dict[str, Steering]) -> None:
        """Errors: VectorError or ModelError for what cannot steer, before anything is changed."""
        self._engine.check_steering([one for one in steering.values() if one.strength])
        self._steering = steering

    def _meant(self) -> list[str]:
        """The vectors that are meant where none is named."""
        names = [applied.name for applied in self.steering] or list(self._steering)
        if not names:
            raise VectorError("this conversation has no vectors; name their files at the start")
        return names

    def _messages(self, exchanges: Sequence[Exchange]) -> list[Message]:
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for exchange in exchanges:
            messages.append({"role": "user", "content": exchange.question})
            messages.append({"role": "assistant", "content": exchange.answer})
        return messages

    def _request(self, text: str, before: Sequence[Exchange]) -> Request:
        prompt = self._engine.chat([*self._messages(before), {"role": "user", "content": text}])
        steering = tuple(applied.steering for applied in self.steering)
        return Request(prompt, self.max_tokens, steering, self.sampling)

    def _answer(self, requests: Sequence[Request], on_text: OnText | None) -> list[Completion]:
        """The completions of one batch. Whatever is raised on the way, nothing runs on."""
        ended: dict[int, Completion] = {}

        def show(index: int, piece: Piece) -> None:
            if piece.text and on_text:
                on_text(index, piece.text)

        try:
            for index, request in enumerate(requests):
                done = partial(ended.__setitem__, index)
                self._tickets.append(self._engine.submit(request, on_piece=partial(show, index), on_done=done))
            while len(ended) < len(requests):
                self._engine.step()
        except BaseException:
            self.stop()
            on_text = None
            while self._engine.step():
                pass
            raise
        finally:
            self._tickets = []
        completions = [ended[index] for index in range(len(requests))]
        self._count(requests, completions)
        return completions

    def _count(self, requests: Sequence[Request], completions: Sequence[Completion]) -> None:
        """Errors: RequestError for an answer that could not be."""
        if errors := [completion.error for completion in completions if completion.finish == "error"]:
            raise RequestError(errors[0])
        self.last = NO_FIGURES
        for request, completion in zip(requests, completions, strict=True):
            self.last = self.last.plus(request, completion)
            self.total = self.total.plus(request, completion)

    def _take(self, before: Sequence[Exchange], question: str, answer: Completion) -> None:
        if answer.text or answer.finish != "cancelled":
            self.exchanges = [*before, Exchange(question, answer.text)]


@dataclass(frozen=True)
class SavedMessage:
    role: Role
    content: str


@dataclass(frozen=True)
class SavedSteering:
    name: str
    digest: str
    strength: float
    layers: tuple[int, ...]
    phase: Phase

    @classmethod
    def of(cls, applied: Applied) -> "SavedSteering":
        one = applied.steering
        return cls(applied.name, one.vector.digest, one.strength, one.layers or (), one.phase)


@dataclass(frozen=True)
class SavedConversation:
    """The file of a conversation. model: whose it was, which another one may go on with."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    format: Literal["edge-steer conversation 1"]
    model: str
    messages: tuple[SavedMessage, ...]
    steering: tuple[SavedSteering, ...]
    sampling: Sampling
    max_tokens: Annotated[int, Field(ge=1)]

    def history(self, path: Path) -> tuple[str, list[Exchange]]:
        """The system message and the exchanges. Errors: EdgeSteerError unless user and assistant take turns."""
        messages = list(self.messages)
        system = messages.pop(0).content if messages and messages[0].role == "system" else ""
        if [message.role for message in messages] != ["user", "assistant"] * (len(messages) // 2):
            raise EdgeSteerError(f"{path} is no saved conversation: user and assistant do not take turns")
        pairs = zip(messages[::2], messages[1::2], strict=True)
        return system, [Exchange(question.content, answer.content) for question, answer in pairs]


def _read(path: Path) -> SavedConversation:
    text = readable(path, "a saved conversation").read_bytes()
    try:
        return TypeAdapter(SavedConversation).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        where = f"{place}: " if place else ""
        raise EdgeSteerError(f"{path} is no saved conversation: {where}{first['msg']}") from None
    except RequestError as error:
        raise EdgeSteerError(f"{path} is no saved conversation: {error}") from None
