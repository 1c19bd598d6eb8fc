"""`edge-steer chat`: through a pipe, and in a terminal as a person types."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from paths import ABACUS, DENSE

from edge_steer.commands.main import main

TOM = "Tom has 12 apples and buys 7 more. How many apples does Tom have?"
VECTOR = f"dense={DENSE}"
ENDLESS = "/strength 4"  # at which the bundled model repeats itself until the context is full
SECONDS = 60


def chat(*lines: str, options: tuple[str, ...] = ("--vector", VECTOR)) -> Result:
    arguments = ["chat", str(ABACUS), "--threads", "1", *options]
    result = CliRunner().invoke(main, arguments, input="\n".join(lines))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_each_line_of_a_pipe_is_a_turn_and_stdout_has_the_answers_alone() -> None:
    result = chat(TOM, "", "/strength 0", TOM)
    alone = CliRunner().invoke(main, ["run", str(ABACUS), TOM, "--threads", "1", "--vector", str(DENSE)]).stdout
    assert result.exit_code == 0
    assert result.stdout.startswith(alone)
    assert len(result.stdout) > len(alone)
    assert result.stderr == "unsteered\n"


def test_commands_change_and_tell_the_steering() -> None:
    result = chat("/vector", "/strength 2", "/phase generated", "/layers 5", "/vector dense 0.25", "/vector dense")
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "dense 0.325, layers 5, phase all",
        "dense 2, layers 5, phase all",
        "dense 2, layers 5, phase generated",
        "dense 2, layers 5, phase generated",
        "dense 0.25, layers 5, phase generated",
        "dense 0.325, layers 5, phase all",
    ]


def test_a_vector_named_with_0_waits_to_be_asked_for() -> None:
    result = chat("/stats", "/vector dense", options=("--vector", f"{VECTOR}:0"))
    assert result.stderr.splitlines() == ["unsteered", "dense 0.325, layers 5, phase all"]


def test_a_comparison_is_a_table_of_both_answers() -> None:
    result = chat("/strength 1.5", f"/compare {TOM}")
    assert "unsteered" in result.stdout
    assert "steered by 1.5 dense" in result.stdout
    assert "\\boxed{19}" in result.stdout


def test_stats_tell_what_was_computed_and_what_steers() -> None:
    last, total, steering = chat(TOM, TOM, "/stats").stderr.splitlines()
    computed, reused = re.findall(r"(\d+) computed in [\d.e-]+ s, (\d+) from the cache", last)[0]
    assert int(reused) > int(computed)
    assert total.startswith("all 2 answers: ")
    assert re.fullmatch(r"dense 0\.325, layers 5, phase all, digest [0-9a-f]{64}", steering)


def test_system_message_clear_and_quit() -> None:
    lines = chat("/system", "/system Be brief.", "/system off", "/clear", "/quit", "/help").stderr.splitlines()
    assert lines == ["system message: none", "system message: Be brief.", "system message: none", "a new conversation"]


def test_a_saved_chat_is_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    assert chat("/strength 0.5", TOM, f"/save {file}").stderr.splitlines()[-1] == f"saved: {file}"
    saved = json.loads(file.read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    assert chat(f"/load {file}").stderr == "1 messages with their answers; dense 0.5, layers 5, phase all\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/dance", "no command /dance; /help lists them"),
        ("/strength much", "'much' is no number; write /strength 3"),
        ("/strength nan", "strength is nan; it must be a finite number"),
        ("/vector other 1", "no vector 'other' here; there are: dense"),
        ("/layers 99", "vector has layers 5; layer 99 asked"),
        ("/phase prompt", "no phase 'prompt'; allowed are all, generated"),
        ("/save", "name a file, as in /save talk.json"),
        ("/load no.json", "no such file: no.json; expected a saved conversation"),
    ],
)
def test_what_is_wrong_in_a_pipe_ends_it_in_one_line(line: str, message: str) -> None:
    result = chat(line, TOM)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"edge-steer: {message}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("message", ["/usr/bin holds 3 files and 2 more. How many?", " /help"])
def test_a_message_may_begin_with_a_slash(message: str, tmp_path: Path) -> None:
    result = chat(message, f"/save {tmp_path}/talk.json", options=("-n", "4"))
    assert result.exit_code == 0
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][0]["content"] == message.strip()


def test_what_is_no_text_is_one_line() -> None:
    command = [sys.executable, "-m", "edge_steer", "chat", str(ABACUS), "--threads", "1"]
    done = subprocess.run(command, input=b"\xff\n", capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"edge-steer: standard input is not UTF-8; convert it first\n")


def test_an_answer_cut_off_says_why() -> None:
    assert chat(TOM, options=("-n", "4")).stderr == "cut off: --max-tokens allows no more\n"
    options = ("--vector", VECTOR, "--context", "64")
    assert chat(ENDLESS, TOM, options=options).stderr.endswith("cut off: the context is full; /clear empties it\n")


class Terminal:
    """A chat in a terminal of its own, 100 columns wide."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self._master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "EDGE_STEER_CACHE": str(folder), "COLUMNS": "100"}
        environment.pop("NO_COLOR", None)
        command = [sys.executable, "-m", "edge_steer", "chat", str(ABACUS), "--vector", VECTOR, "--threads", "1"]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env={**environment, **variables}, start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )  # fmt: skip
        os.close(slave)
        self.shown = ""  # all of it, with colours
        self._unread = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, text: str) -> str:
        """What was shown until `text`, which is taken, without colours and movements of the cursor."""
        end = time.monotonic() + SECONDS
        while text not in _plain(self._unread):
            assert time.monotonic() < end, f"no {text!r} in {_plain(self._unread)!r}"
            self._read()
        before, _, after = _plain(self._unread).partition(text)
        self._unread = after
        return before

    def wait_for_end(self) -> int:
        """The exit status."""
        end = time.monotonic() + SECONDS
        with suppress(OSError):  # nobody writes any more
            while time.monotonic() < end:
                self._read()
        return self.process.wait(1)

    def _read(self) -> None:
        if select.select([self._master], [], [], 0.1)[0]:
            shown = os.read(self._master, 65536).decode(errors="replace")
            self.shown += shown
            self._unread += shown
            if "\x1b[6n" in shown:  # where is the cursor?
                self.type("\x1b[1;1R")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def _plain(shown: str) -> str:
    return re.sub(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[=>]|\][^\x07]*\x07)", "", shown).replace("\r", "")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    terminal.wait_for("/help lists the commands; Ctrl-D ends.")
    terminal.wait_for("> ")
    yield terminal
    terminal.close()


def test_ctrl_c_stops_the_answer_and_ctrl_d_the_chat(terminal: Terminal) -> None:
    terminal.type(f"{ENDLESS}\r")
    terminal.wait_for("dense 4, layers 5, phase all")
    terminal.type("What is 3 plus 4?\r")
    terminal.wait_for("This is This")
    terminal.type("\x03")
    assert "^C" not in terminal.wait_for("stopped")
    terminal.wait_for("> ")
    terminal.type("\x03")
    terminal.wait_for("Ctrl-D or /quit ends the chat")
    terminal.type("/dance\r")
    terminal.wait_for("no command /dance")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.wait_for_end() == 0


def test_commands_names_and_files_complete(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("/vec\tde\t2\r")
    terminal.wait_for("dense 2, layers 5, phase all\n")
    terminal.type(f"/sa\t{tmp_path}/chat-his\t.json\r")
    terminal.wait_for(f"saved: {tmp_path}/chat-history.json")
    terminal.type("/he\t\r")
    assert "/strength [NUMBER]" in terminal.wait_for("Alt-Enter begins a new line")


def test_a_message_of_two_lines_is_one_and_remembered(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("Tom has 12 apples.\x1b\rTom buys 7 more. How many?\r")
    terminal.wait_for("\\boxed{")
    talk = tmp_path / "talk.json"
    terminal.type(f"/save {talk}\r")
    terminal.wait_for("saved: ")
    assert json.loads(talk.read_text())["messages"][0]["content"] == "Tom has 12 apples.\nTom buys 7 more. How many?"
    history = tmp_path / "chat-history"
    assert "+Tom buys 7 more. How many?" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


def test_two_answers_grow_side_by_side(terminal: Terminal) -> None:
    terminal.type(f"/compare {TOM}\r")
    terminal.wait_for("steered by 0.325 dense")
    terminal.wait_for("The answer is \\boxed{19}.                         The answer is \\boxed{19}.")


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_colour_where_none_is_wanted(variables: dict[str, str], coloured: bool, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, **variables)
    terminal.wait_for("Ctrl-D ends.")
    terminal.wait_for("abacus: dense 0.325")
    terminal.close()
    assert bool(re.search(r"\x1b\[[0-9;]*\b[39][0-7]m", terminal.shown)) == coloured


def test_help_tells_the_extra_that_a_terminal_needs() -> None:
    from edge_steer.core.errors import packages_of

    assert packages_of("chat") == ("prompt_toolkit",)
