"""A Progress that keeps what it hears, for tests."""

from edge_steer.core.progress import Progress


class Heard(Progress):
    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.notes: list[str] = []

    def __call__(self, doing: str, done: int = 0, total: int = 1) -> None:
        self.steps.append((doing, done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)
