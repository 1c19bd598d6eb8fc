"""The group of commands: headings, one line for what a user can mend, and how a stopped command ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edge_steer.commands.main import main
from edge_steer.core.errors import EdgeSteerError
from edge_steer.terminal.group import Group, resumable

WAITING = """
import sys, time, click
from edge_steer.terminal.group import Group, resumable

@click.group(cls=Group)
def main(): pass

@click.command()
@resumable
def sweep():
    print("begun", flush=True)
    time.sleep(60)

@click.command()
def run():
    print("begun", flush=True)
    time.sleep(60)

main.add_commands("Commands", {sweep: "Goes on.", run: "Does not."})
main()
"""


@pytest.mark.parametrize(
    ("command", "line"), [("sweep", "stopped; the same command goes on from there"), ("run", "stopped")]
)
def test_an_interrupted_command_says_how_to_go_on(command: str, line: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == line


def test_every_command_is_listed_once_under_a_heading_in_a_line_of_its_own() -> None:
    result = CliRunner().invoke(main, ["--help"], terminal_width=80)
    lines = result.stdout.splitlines()
    commands = lines[lines.index("Use a steered model:") :]
    names = [line.split()[0] for line in commands if line.startswith("  ")]
    assert sorted(names) == sorted(main.commands)
    assert all(len(line.split()) > 2 for line in commands if line.startswith("  "))
    assert {line for line in commands if line and not line.startswith(" ")} >= {
        "Use a steered model:", "Make a vector:", "Vector files:", "Measure:", "Models:",
    }  # fmt: skip


def test_no_arguments_list_the_commands() -> None:
    assert CliRunner().invoke(main, []).output == CliRunner().invoke(main, ["--help"]).output


@click.command()
@click.option("--bug", is_flag=True)
def fail(bug: bool) -> None:
    raise ValueError("a bug") if bug else EdgeSteerError("no such file: x; expected pairs (.jsonl)")


def test_what_a_user_can_mend_is_one_line_and_a_bug_keeps_its_traceback() -> None:
    group = Group()
    group.add_commands("Commands", {fail: "Fails."})
    result = CliRunner().invoke(group, ["fail"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "edge-steer: no such file: x; expected pairs (.jsonl)\n"
    assert isinstance(CliRunner().invoke(group, ["fail", "--bug"]).exception, ValueError)


def test_resumable_keeps_the_command_as_it_is() -> None:
    @click.command()
    @click.argument("name")
    @resumable
    def greet(name: str) -> None:
        """Greets."""
        click.echo(name)

    assert CliRunner().invoke(greet, ["you"]).stdout == "you\n"
    assert greet.help == "Greets."


def test_a_reader_that_goes_away_is_silent(tmp_path: Path) -> None:
    """`edge-steer pairs show ... | head -1`"""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"question": "q", "positive": "a", "negative": "b"}\n' * 5000)
    read, write = os.pipe()
    command = [sys.executable, "-m", "edge_steer", "pairs", "show", str(pairs), "--pairs", "5000"]
    process = subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert os.read(read, 1)
    os.close(read)
    _, errors = process.communicate(timeout=60)
    assert errors == ""
