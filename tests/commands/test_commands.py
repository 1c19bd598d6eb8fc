"""The commands as a user types them: results, one line for what is wrong, nothing half written."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from paths import ABACUS

from edge_steer.commands.main import main
from edge_steer.tasks.wordproblems import word_problems

QUESTION = word_problems("dev", 1)[0].question


def edge_steer(*arguments: object, input: str | None = None) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=input)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def vector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("extracted") / "vector.safetensors"
    result = edge_steer("extract", ABACUS, ABACUS / "pairs.jsonl", "-o", path)
    assert result.exit_code == 0
    assert "50 pairs" in result.stdout
    return path


def test_extract_export_run(vector: Path, tmp_path: Path, bundled_f16: Path) -> None:
    control = tmp_path / "vector.gguf"
    result = edge_steer("export", vector, "-o", control, "--layers", "2-4", "--strength", "0.5")
    assert result.exit_code == 0, result.output
    assert "layers 2-4, strength 0.5 baked in" in result.output

    plain = edge_steer("run", bundled_f16, QUESTION)
    steered = edge_steer("run", bundled_f16, QUESTION, "--vector", f"{control}:1.2", "--layers", "3")
    assert "\\boxed{" in plain.stdout
    assert plain.stdout != steered.stdout
    unbaked = edge_steer("run", bundled_f16, QUESTION, "--vector", vector, "--strength", "0.6", "--layers", "3")
    assert unbaked.stdout == steered.stdout


def test_a_tuned_file_is_used_as_it_says_and_options_win(vector: Path, tmp_path: Path, bundled_f16: Path) -> None:
    tuned = tmp_path / "tuned.gguf"
    assert edge_steer("vector", "tune", vector, "--layers", "3", "--strength", "0.6", "-o", tuned).exit_code == 0
    run = ("run", bundled_f16, QUESTION, "--threads", "1")
    alone = edge_steer(*run, "--vector", tuned)
    [line] = [line for line in alone.stderr.splitlines() if line.startswith("steering by")]
    assert line.startswith(f"steering by {tuned}: layers 3, strength 0.6, phase all, digest ")
    assert alone.stdout == edge_steer(*run, "--vector", f"{vector}:0.6", "--layers", "3").stdout
    weaker = edge_steer(*run, "--vector", tuned, "--strength", "0.1", "--phase", "generated")
    assert "layers 3, strength 0.1, phase generated" in weaker.stderr
    assert weaker.stdout != alone.stdout
    export = tmp_path / "export"
    export.mkdir()
    tuned.rename(export / "v.gguf")
    (export / "recipe.toml").write_text('model = "m"\nvector = "v.gguf"\nlayer = 3\nstrength = 0.6\nphase = "all"\n')
    assert edge_steer(*run, "--vector", export).stdout == alone.stdout


def test_run_reads_arguments_files_and_standard_input(tmp_path: Path, bundled_f16: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{QUESTION}\n\n{word_problems('dev', 2)[1].question}\n")
    argument = json.loads(edge_steer("run", bundled_f16, QUESTION, "--json").stdout)
    standard = json.loads(edge_steer("run", bundled_f16, "--json", input=QUESTION).stdout)
    assert {**argument, "timings": 0} == {**standard, "timings": 0}
    several = edge_steer("run", bundled_f16, "-f", prompts, "--json")
    rows = [json.loads(line) for line in several.stdout.splitlines()]
    assert len(rows) == 2
    assert rows[0]["text"] == argument["text"]
    assert rows[0]["finish"] == "stop"
    assert edge_steer("run", bundled_f16, QUESTION).stdout == rows[0]["text"] + "\n"


def test_compare_puts_both_side_by_side(vector: Path, bundled_f16: Path) -> None:
    arguments = ("run", bundled_f16, QUESTION, "--vector", f"{vector}:0.6", "--layers", "3", "--compare")
    table = edge_steer(*arguments).stdout
    assert "unsteered" in table
    assert "steered" in table
    row = json.loads(edge_steer(*arguments, "--json").stdout)
    assert row["unsteered"]["text"] != row["steered"]["text"]


def test_quantize_and_info(tmp_path: Path, bundled_f16: Path, vector: Path) -> None:
    target = tmp_path / "q8.gguf"
    assert edge_steer("quantize", bundled_f16, "Q8_0", "-o", target).exit_code == 0
    assert "Q8_0" in edge_steer("info", target).stdout
    machine = json.loads(edge_steer("info", "--json").stdout)
    assert machine["cores this process may use"] >= 1
    described = json.loads(edge_steer("info", vector, "--json").stdout)
    assert described["model"]["block_count"] == 6
    assert set(described["norms"]) == set("012345")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "missing.gguf", "x"], "no such file: missing.gguf"),
        (["run", "{empty}", "x"], "is empty"),
        (["run", "{half}", "x"], "cannot load"),
        (["run", "{vector_gguf}", "x"], "'controlvector'"),
        (["run", "{model}", "x", "--vector", "{model}"], "not 'controlvector'"),
        (["run", "{model}", "x", "--vector", "{vector}", "--layers", "6"], "layer 6 asked"),
        (["run", "{model}", "x", "--vector", "{vector_gguf}", "--layers", "0"], "layer 0 asked"),
        (["run", "{model}", "x", "--vector", "{vector}:nan"], "must be a finite number"),
        (["run", "{model}", "{long}"], "the context holds"),
        (["run", "{model}", "x", "--quant", "Q9"], "Q4_K_M"),
        (["quantize", "{model}", "Q9"], "Q4_K_M"),
        (["quantize", "{vector_gguf}", "Q8_0"], "no model"),
        (["export", "{pairs}", "-o", "{out}"], "not a"),
        (["export", "{vector}", "-o", "/nonexistent/v.gguf"], "cannot write"),
        (["export", "{vector}", "-o", "{out}", "--layers", "0"], "no layer 0"),
        (["export", "{vector}", "-o", "{out}", "--layers", "9"], "layer 9 asked"),
        (["extract", "{abacus}", "{bad_pairs}", "-o", "{out}"], "line 2"),
        (["extract", "{abacus}", "{pairs}", "-o", "{out}", "--layers", "7"], "layer 7"),
        (["extract", "nowhere/at-all", "{pairs}", "-o", "{out}"], "nowhere/at-all"),
        (["pairs", "show", "{empty}"], "is empty"),
        (["run", "{model}", "-f", "{blank}"], "only blank lines"),
        (["run", "{model}", "-f", "{latin}"], "not UTF-8"),
        (
            ["parity", "{f32}", "--reference", "{abacus}", "--vector", "{vector_gguf}", "--text-file", "{blank}"],
            "only blank lines",
        ),
        (["info", "{pairs}"], "not a"),
    ],
)
def test_bad_input_is_one_line_and_status_1(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    vector: Path,
    bundled_f16: Path,
    bundled_f32: Path,
    bundled_vector_gguf: Path,
) -> None:
    names = {name: tmp_path / name for name in ("empty", "half", "bad_pairs", "out", "blank", "latin")}
    names["empty"].write_bytes(b"")
    names["blank"].write_text("\n \n")
    names["latin"].write_bytes("Zoë".encode("latin-1"))
    names["half"].write_bytes(bundled_f16.read_bytes()[:3_000_000])
    names["bad_pairs"].write_text('{"question": "q", "positive": "a", "negative": "b"}\n{"question": \n')
    words = {
        **names, "f32": bundled_f32, "model": bundled_f16, "vector": vector, "vector_gguf": bundled_vector_gguf,
        "pairs": ABACUS / "pairs.jsonl", "abacus": ABACUS, "long": "apples " * 2000,
    }  # fmt: skip
    result = edge_steer(*(argument.format(**words) for argument in arguments))
    assert result.exit_code == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("edge-steer: ")
    assert says in message
    assert "Traceback" not in result.output
    assert not names["out"].exists()
    assert not list(tmp_path.glob(".*.partial"))


def test_wrong_usage_is_status_2(bundled_f16: Path) -> None:
    assert edge_steer("run", bundled_f16, "x", "--temperature", "-1").exit_code == 2
    assert edge_steer("run", bundled_f16, "x", "--layers", "3").exit_code == 2
    assert edge_steer("run", bundled_f16, input="").exit_code == 2
    assert edge_steer("run", bundled_f16, "x", "--phase", "all").exit_code == 2
    assert edge_steer("convert").exit_code == 2
    wrong = edge_steer("run", bundled_f16, "x", "--vector", "v.gguf", "--layers", "a-b")
    assert wrong.exit_code == 2
    assert "'--layers': cannot read layers 'a-b'" in wrong.stderr


def test_an_interrupted_extraction_leaves_nothing(tmp_path: Path) -> None:
    many = tmp_path / "pairs.jsonl"
    many.write_text((ABACUS / "pairs.jsonl").read_text() * 40)
    out = tmp_path / "vector.safetensors"
    command = [sys.executable, "-m", "edge_steer", "extract", str(ABACUS), str(many), "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped"
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
