"""What answers took: tokens computed, taken from the cache and generated, and the seconds of each part."""

from dataclasses import dataclass

from edge_steer.core.backend import Completion, Request


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
