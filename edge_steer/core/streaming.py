"""The growing text of one completion: stop strings end it, and nothing is shown that may yet belong to one.

Takes characters, gives the characters that can be shown. It knows no tokens and no bytes: making characters of them,
whole ones, is the caller's. The result does not depend on how the characters were cut into pieces.
"""

from collections.abc import Sequence


class Text:
    """Text up to the stop string that is complete first; where two end together, up to the longer one."""

    def __init__(self, stop: Sequence[str]) -> None:
        """stop: none of them empty."""
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=1)
        self._shown = 0
        self.text = ""
        self.stopped = False

    def add(self, new_characters: str) -> str:
        """Take characters; give those that can no longer become part of a stop string. After a stop, none."""
        if self.stopped:
            return ""
        searched = max(0, len(self.text) + 1 - self._longest)
        self.text += new_characters
        ends = [(at + len(stop), at) for stop in self._stop if (at := self.text.find(stop, searched)) >= 0]
        if ends:
            self.text, self.stopped = self.text[: min(ends)[1]], True
            return self.finish()
        return self._show(len(self.text) - self._held())

    def finish(self) -> str:
        """Give all that was held back."""
        return self._show(len(self.text))

    def _show(self, upto: int) -> str:
        new, self._shown = self.text[self._shown : upto], upto
        return new

    def _held(self) -> int:
        """How many of the last characters are the beginning of a stop string."""
        tail = self.text[max(0, len(self.text) + 1 - self._longest) :]
        return next((n for n in range(len(tail), 0, -1) if any(s.startswith(tail[-n:]) for s in self._stop)), 0)
