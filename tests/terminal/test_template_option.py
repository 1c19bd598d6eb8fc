"""--template: the model's chat template, plain text, or a file, in every command that asks; alike in both runtimes."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edge_steer.commands.main import main
from edge_steer.core.backend import PLAIN, EngineOptions, Message
from edge_steer.core.errors import ModelError
from edge_steer.llama.engine import Engine
from edge_steer.models.load import Runtime, load
from edge_steer.reference.model import Reference

MESSAGES: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Mia has 3 apples. How many?"},
]
RUNTIMES: tuple[Runtime, ...] = ("llama", "torch")
BROKEN = "first line\n{% for message in messages %}{{ message.content }}"
OWN = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}answer: "
ABACUS = Path(__file__).parents[2] / "models" / "abacus"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (PLAIN, "Be brief.\n\nMia has 3 apples. How many?"),
        (OWN, "system: Be brief.\nuser: Mia has 3 apples. How many?\nanswer: "),
    ],
)
def test_a_template_makes_the_same_prompt_in_both_runtimes(template: str, text: str) -> None:
    options = EngineOptions(context=256, threads=1, template=template)
    sources: list[tuple[Path, Runtime]] = [(ABACUS, "llama"), (ABACUS, "torch"), (ABACUS / "abacus-F16.gguf", "torch")]
    for source, runtime in sources:
        with load(source, runtime=runtime, options=options) as model:
            assert isinstance(model, Engine | Reference)
            assert model.chat(MESSAGES) == model.encode(text)
            assert model.provenance.backend["template"] == template


def test_the_models_own_template_is_not_among_what_changes_numbers() -> None:
    with load(ABACUS, options=EngineOptions(context=256, threads=1)) as model:
        assert "template" not in model.provenance.backend
        assert model.chat(MESSAGES) != model.encode(MESSAGES[1]["content"])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_template_with_a_syntax_error_is_refused_with_its_line(runtime: Runtime) -> None:
    with pytest.raises(ModelError, match=r"the chat template is no Jinja at line 2: .*endfor") as caught:
        load(ABACUS, runtime=runtime, options=EngineOptions(template=BROKEN))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_template_that_leaves_the_messages_out_is_refused(runtime: Runtime) -> None:
    """Such as "chat", which the command takes for the model's own."""
    with pytest.raises(ModelError, match="never names 'messages'"):
        load(ABACUS, runtime=runtime, options=EngineOptions(template="chat"))


def test_a_file_with_a_syntax_error_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.jinja"
    file.write_text(BROKEN)
    result = CliRunner().invoke(main, ["run", str(ABACUS), "hi", "--template", str(file)])
    assert result.exit_code == 1
    assert result.output.count("\n") == 1 and "no Jinja at line 2" in result.output


def test_a_file_that_is_not_there_is_named() -> None:
    result = CliRunner().invoke(main, ["run", str(ABACUS), "hi", "--template", "nowhere.jinja"])
    assert result.exit_code == 2
    assert "nowhere.jinja: No such file or directory; give chat, none or a file with a Jinja template" in result.output


def test_a_question_in_plain_text_is_answered_from_its_own_tokens() -> None:
    options = ["--template", "none", "-n", "4", "--threads", "1", "--json"]
    asked = CliRunner().invoke(main, ["run", str(ABACUS), "Mia has", *options])
    raw = CliRunner().invoke(main, ["run", str(ABACUS), "Mia has", "--raw", *options[2:]])
    assert asked.exit_code == raw.exit_code == 0, asked.output
    assert asked.output.split('"tokens": ')[1].split("]")[0] == raw.output.split('"tokens": ')[1].split("]")[0]


@pytest.mark.parametrize("command", ["run", "eval", "sweep", "pairs generate", "parity", "extract", "build"])
def test_every_command_that_asks_takes_a_template(command: str) -> None:
    found: click.Command = main
    for name in command.split():
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), name) or main
    assert "--template" in {option for parameter in found.params for option in parameter.opts}
