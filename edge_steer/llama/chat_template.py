"""A model's chat template turned into text, as transformers would (the door to jinja2).

Takes the template's source, messages and the text of the begin and end tokens; gives the prompt as text. It knows no
model and no tokens.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox

from edge_steer.core.errors import ModelError, first_line


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos: str,
    eos: str,
    answer: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The conversation as text, up to where the assistant answers.

    answer: False leaves the last message open instead, to be gone on with. variables: what else the template is told.
    Errors: ModelError if the template is broken or refuses the messages.
    """
    try:
        names = {"messages": list(messages), "add_generation_prompt": answer, "bos_token": bos, "eos_token": eos}
        text = _compiled(template).render({**(variables or {}), **names})
    except Exception as error:  # a template is a program of its own and raises what it likes
        raise ModelError(f"the chat template refuses these messages: {first_line(error)}") from error
    return text if answer else _open(text, str(messages[-1]["content"]))


def check_template(template: str) -> None:
    """Errors: ModelError for a template with a syntax error, with its line; for one that leaves the messages out."""
    try:
        tree = _compiled(template).environment.parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"the chat template is no Jinja at line {error.lineno}: {error.message}") from None
    if "messages" not in jinja2.meta.find_undeclared_variables(tree):
        raise ModelError("the chat template never names 'messages', so every prompt would be the same")


@cache
def _compiled(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTags, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return environment.from_string(template)


def _open(text: str, last: str) -> str:
    """The text up to the end of the last message's content."""
    for content in (last, last.strip()):
        if content and (at := text.rfind(content)) >= 0:
            return text[: at + len(content)]
    raise ModelError("the chat template leaves out or changes the last message; it cannot be gone on with")


class _GenerationTags(jinja2.ext.Extension):
    """{% generation %} marks the assistant's words for training; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
