"""What a command's arguments may be: files, folders, a MODEL, a vector, its use; and how a shell completes them.

Takes click's strings, gives the library's values. Heavy packages are imported when a value is converted.
"""

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem


class _PathText(click.ParamType[str]):
    """Text that begins with a path, or is one; a shell completes it as a file."""

    name = "text"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class _Layers(click.ParamType[tuple[int, ...]]):
    """Layers as 3 or 1-5 or 1,2,7-9; a tuple of numbers."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        from edge_steer.core.errors import VectorError
        from edge_steer.core.vector import parse_layers

        if isinstance(value, tuple):
            return value
        try:
            return parse_layers(value)
        except VectorError as error:
            self.fail(str(error), param, ctx)


class _Template(_PathText):
    """chat (the model's own template, None), none (plain text), or a file with a Jinja template; its text."""

    name = "template"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("chat", "none"):
            return None if value == "chat" else value
        try:
            return Path(value).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
            self.fail(f"{value}: {why}; give chat, none or a file with a Jinja template", param, ctx)


FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
PATH = click.Path(path_type=Path)  # a file or a folder, as a vector or an export folder
MODEL = _PathText()  # a GGUF file, a Hugging Face folder, a recipe's folder or a hub id
VECTOR = _PathText()  # FILE[:STRENGTH]
TASK = _PathText()  # a task's name, NAME=FILE or a task.toml
LAYERS = _Layers()
PHASE = click.Choice(["all", "generated", "delimiter"])  # core.vector's PHASES
TEMPLATE = _Template()  # chat, none or a file
