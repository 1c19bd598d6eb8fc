"""A conversation whose steering can be changed between two answers: history, steering, comparison, saving.

Takes messages and vectors by name, gives completions piece by piece. It knows no terminal and no HTTP.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from edge_steer.chat.figures import NO_FIGURES
from edge_steer.chat.history import Exchange, as_messages
from edge_steer.chat.saved import FORMAT, Role, SavedConversation, SavedMessage, SavedSteering, read_saved
from edge_steer.core.backend import Completion, Message, OnText, Piece, Request, SteppingEngine
from edge_steer.core.errors import RequestError, VectorError
from edge_steer.core.sampling import GREEDY, Sampling
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Phase
from edge_steer.storage.files import write_json
from edge_steer.vectors.named import Applied, NamedVectors

MAX_TOKENS = 1024  # of an answer, where nothing else is said


@dataclass(frozen=True)
class Comparison:
    """Two answers to one message, from one batch."""

    unsteered: Completion
    steered: Completion


class Conversation:
    """One chat with one engine. A message that cannot be answered leaves it as it was.

    `exchanges` is the history, oldest first. `system`: the system message, "" is none. `last`: figures of the last
    answer, `total`: of all. System message, sampling and max_tokens may be set.
    """

    def __init__(
        self,
        engine: SteppingEngine,
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
        return as_messages(self.system, self.exchanges)

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
        saved = read_saved(path)
        system, exchanges = saved.history(path)
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

    def _request(self, text: str, before: Sequence[Exchange]) -> Request:
        prompt = self._engine.chat([*as_messages(self.system, before), {"role": "user", "content": text}])
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
