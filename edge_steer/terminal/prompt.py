"""A line, or several, typed in a terminal: history, commands that complete, a line of state below.

Takes the commands there are, gives what was typed. The only door to prompt_toolkit, which the extra `chat` installs. It
knows no command.
"""

import contextlib
import re
import sys
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import AnyFormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

STYLE = Style.from_dict({"prompt": "bold ansicyan", "bottom-toolbar": "noreverse ansibrightblack"})


class Command(Protocol):
    """A command as it completes. line: what it does. usage: what follows its name, as words or, takes_file, a path."""

    @property
    def usage(self) -> str: ...

    @property
    def line(self) -> str: ...

    @property
    def words(self) -> Sequence[str]: ...

    @property
    def takes_file(self) -> bool: ...


def reader(commands: Mapping[str, Command], history: Path, state: Callable[[], str]) -> Callable[[], str]:
    """A function that asks for the next message. Enter sends it, Alt-Enter begins a new line.

    commands: by their names, as "/help". history: the file of what was typed before. state: the line below the prompt.
    The function raises EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C.
    """
    session: PromptSession[str] = PromptSession(
        multiline=True,
        completer=_Commands(commands),
        history=_history(history),
        key_bindings=_keys(),
        style=STYLE,
        bottom_toolbar=lambda: [("class:bottom-toolbar", state())],
        prompt_continuation=_indent,
    )
    return lambda: session.prompt([("class:prompt", "> ")])


@contextlib.contextmanager
def quiet_keys() -> Iterator[None]:
    """Keys typed while the block runs are not shown in what it prints; the next prompt has them."""
    before = termios.tcgetattr(sys.stdin)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


class _Commands(Completer):
    """Completes the name of a command at the beginning of a message, then what may follow it."""

    def __init__(self, commands: Mapping[str, Command]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        match = re.fullmatch(r"(/\w*)(?:\s+(\S*))?", text)
        if not match:
            return
        name, word = match.groups()
        if word is None:
            for other, command in self._commands.items():
                if other.startswith(name):
                    gap = " " if command.usage else ""
                    yield Completion(other + gap, -len(name), display=other, display_meta=command.line)
        elif name in self._commands and self._commands[name].takes_file:
            yield from self._paths.get_completions(Document(word), complete_event)
        elif name in self._commands:
            words = self._commands[name].words
            yield from (Completion(other + " ", -len(word), display=other) for other in words if other.startswith(word))


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("tab")
    def _complete(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        completions = list(buffer.completer.get_completions(buffer.document, CompleteEvent(completion_requested=True)))
        if len(completions) == 1:  # at once: a menu that is being made would swallow the key
            buffer.apply_completion(completions[0])
        elif buffer.complete_state:
            buffer.complete_next()
        else:
            buffer.start_completion(insert_common_part=True)

    @keys.add("escape", "enter")
    @keys.add("escape", "c-j")  # the same, typed before the prompt was there
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _indent(width: int, _line: int, _wraps: int) -> AnyFormattedText:
    return " " * width


def _history(path: Path) -> History:
    """On disk, for its owner alone; in memory where the file cannot be written."""
    with contextlib.suppress(OSError):
        path.touch(mode=0o600)
        return FileHistory(path)
    return InMemoryHistory()
