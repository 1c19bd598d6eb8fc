"""eval and compare as a user types them: rows, tables, one line for what is wrong; a kill loses nothing."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from paths import ABACUS, DENSE

from edge_steer.commands.main import main
from edge_steer.core.errors import EdgeSteerError
from edge_steer.evaluation import results
from edge_steer.storage import records

Eval = Callable[..., Result]
EVAL = ("eval", "{model}", "--task", "wordproblems")
METHODS = ("unsteered", "steered", "dense-prompt")


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def options(model: Path, vector: Path, out: Path, *more: object) -> list[object]:
    base = [model, "--task", "wordproblems", "--threads", 1, "--vector", f"{vector}:0.4", "--layers", 5]
    return ["eval", *base, "--out", out, *more]


@pytest.fixture(scope="module")
def folder(bundled_f16: Path, bundled_vector_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What eval leaves: three methods on six problems."""
    out = tmp_path_factory.mktemp("results") / "run"
    more = ("--problems", 6, "--methods", ",".join(METHODS))
    result = invoke(*options(bundled_f16, bundled_vector_gguf, out, *more))
    assert result.exit_code == 0, result.output
    for word in ("unsteered", "dense-prompt", "accuracy", "NLL", "McNemar", f"wrote {out}/rows.jsonl"):
        assert word in result.stdout
    return out


def test_rows_and_summary(folder: Path) -> None:
    header, cells = results.load_results(folder)
    assert [*cells] == [("wordproblems", method) for method in METHODS]
    rows = [row for made in cells.values() for row in made]
    assert len(records.read(folder / "rows.jsonl")[1]) == len({row.key for row in rows}) == 18
    assert all(row.nll is not None and not row.awaits_score for row in rows)
    assert [row.id for row in cells["wordproblems", "steered"]] == [f"test-0-{i}" for i in range(6)]
    [steering] = header["methods"]["steered"]["steering"]
    assert (steering["strength"], steering["layers"]) == (0.4, [5])
    assert header["tasks"]["wordproblems"]["settings"]["sampling"]["temperature"] == 0
    assert header["backend"] | {"parallel": 16, "threads": 1, "kv_type": "f16"} == header["backend"]
    assert {"edge-steer", "llama-cpp-python", "cpu features", "math-verify"} <= {*header["versions"]}

    summary = json.loads((folder / "summary.json").read_text())
    assert {key: summary[key] for key in header} == header
    by_method = {cell["method"]: cell["figures"] for cell in summary["cells"]}
    assert by_method["steered"]["steps"]["mean"] < by_method["unsteered"]["steps"]["mean"]
    assert by_method["steered"]["density"]["mean"] > by_method["unsteered"]["density"]["mean"]
    assert by_method["steered"]["nll"]["mean"] > by_method["unsteered"]["nll"]["mean"]
    low, high = by_method["steered"]["tokens"]["interval"]
    assert low < by_method["steered"]["tokens"]["mean"] < high
    assert len({row.prompt for row in cells["wordproblems", "dense-prompt"]}
               & {row.prompt for row in cells["wordproblems", "unsteered"]}) == 0  # fmt: skip
    compared = {(c["before"], c["after"]): c for c in summary["comparisons"]}
    assert {*compared} == {("unsteered", "steered"), ("unsteered", "dense-prompt"), ("steered", "dense-prompt")}
    assert compared["unsteered", "steered"]["differences"]["steps"]["interval"][1] < 0


def without_seconds(path: Path) -> list[dict[str, Any]]:
    return [{**record, "seconds": None} for record in records.read(path)[1]]


def test_a_second_run_elsewhere_gives_the_same_rows(
    folder: Path, bundled_f16: Path, bundled_vector_gguf: Path, tmp_path: Path
) -> None:
    more = ("--problems", 6, "--methods", "unsteered,steered,dense-prompt", "--json")
    result = invoke(*options(bundled_f16, bundled_vector_gguf, tmp_path / "again", *more))
    assert without_seconds(tmp_path / "again" / "rows.jsonl") == without_seconds(folder / "rows.jsonl")
    assert json.loads(result.stdout) == json.loads((folder / "summary.json").read_text())


def test_a_finished_run_is_not_made_again(folder: Path, bundled_f16: Path, bundled_vector_gguf: Path) -> None:
    before = (folder / "rows.jsonl").read_bytes()
    more = ("--problems", 6, "--methods", "unsteered,steered,dense-prompt")
    assert invoke(*options(bundled_f16, bundled_vector_gguf, folder, *more)).exit_code == 0
    assert (folder / "rows.jsonl").read_bytes() == before


def test_a_killed_run_goes_on(bundled_f16: Path, bundled_vector_gguf: Path, tmp_path: Path) -> None:
    """Killed twice, while unsteered rows are made and once steered ones are: then every row is there once."""
    path = tmp_path / "run" / "rows.jsonl"
    command = options(bundled_f16, bundled_vector_gguf, path.parent, "--problems", 8, "--parallel", 2)
    for rows in (3, 11):
        process = subprocess.Popen(
            [sys.executable, "-m", "edge_steer", *map(str, command)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") > rows):
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (path.parent / "summary.json").exists()
    kept = [record for record in records.read(path)[1] if record["nll"] is not None]
    assert len(kept) >= 8
    assert invoke(*command).exit_code == 0
    after = records.read(path)[1]
    keys = [(record["method"], record["id"]) for record in after]
    assert keys == [(method, f"test-0-{i}") for method in ("unsteered", "steered") for i in range(8)]
    assert all(record in after for record in kept)
    assert all(record["nll"] is not None for record in after)


def test_settings_are_the_protocols_unless_given(bundled_f16: Path, tmp_path: Path) -> None:
    more = ("--task", "wordproblems", "--problems", 2, "--threads", 1, "--no-nll")
    changed = ("-n", 30, "--temperature", 0.7, "--top-p", 0.9, "--seed", 4, "--samples", 3, "--system", "Short.")
    result = invoke("eval", bundled_f16, *more, *changed, "--prompt", "Q: {question}", "--out", tmp_path, "--json")
    summary = json.loads(result.stdout)
    settings = summary["tasks"]["wordproblems"]["settings"]
    assert settings["sampling"] | {"temperature": 0.7, "top_p": 0.9, "seed": 4} == settings["sampling"]
    assert (settings["samples"], settings["max_tokens"], settings["system"]) == (3, 30, "Short.")
    assert settings["prompt"] == "Q: {question}"
    (cell,) = summary["cells"]
    assert (cell["samples"], cell["completions"]) == (2, 6)
    assert cell["truncated"] > 0
    assert cell["figures"]["steps"]["interval"] is None
    assert "nll" not in cell["figures"]
    assert summary["comparisons"] == []


def test_named_vectors_and_the_rewriting_prompt_are_rows_of_one_table(
    bundled_f16: Path, bundled_vector_gguf: Path, tmp_path: Path
) -> None:
    task = ("--task", "wordproblems", "--subset", 2, "--problems", 4, "--threads", 1, "--no-nll", "-n", 60)
    named = ("--method", f"dense={DENSE}", "--method", f"weak={bundled_vector_gguf}:0.1")
    prompt = ("--methods", "unsteered,rewriting-prompt", "--rules", "conservative", "--grade", "boxed", "--stop", "zzz")
    result = invoke("eval", bundled_f16, *task, *prompt, *named, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    header, cells = results.load_results(tmp_path)
    assert [method for _, method in cells] == ["unsteered", "rewriting-prompt", "dense", "weak"]
    assert all(len(rows) == 2 for rows in cells.values())
    assert header["methods"]["rewriting-prompt"]["system"].startswith("Below are a problem and a solution to it.")
    assert "{solution}" not in header["methods"]["rewriting-prompt"]["system"]
    assert [header["methods"][name]["steering"][0]["strength"] for name in ("dense", "weak")] == [0.325, 0.1]
    settings = header["tasks"]["wordproblems"]["settings"]
    assert (settings["grading"], settings["stop"]) == ("boxed", ["zzz"])


def test_the_default_folder_follows_from_the_settings(
    bundled_f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for limit in (1, 2, 1):
        more = ("--task", "wordproblems", "--problems", limit, "--threads", 1, "--no-nll", "-n", 5)
        result = invoke("eval", bundled_f16, *more)
        assert "rows go to results/abacus-F16/" in result.stderr
        assert "too few problems" in result.stdout
    assert len([*(tmp_path / "results" / "abacus-F16").glob("*/rows.jsonl")]) == 2


def test_torch_evaluates_too(tmp_path: Path) -> None:
    abacus = ABACUS
    more = ("--backend", "torch", "--task", "wordproblems", "--problems", 2, "--threads", 1, "-n", 20)
    summary = json.loads(invoke("eval", abacus, *more, "--out", tmp_path, "--json").stdout)
    assert summary["backend"]["name"] == "torch"
    assert {"torch", "transformers"} <= {*summary["versions"]}
    assert summary["cells"][0]["figures"]["nll"]["mean"] > 0


def test_compare_two_runs(folder: Path, bundled_f16: Path, bundled_vector_gguf: Path, tmp_path: Path) -> None:
    more = ("--problems", 5, "--methods", "unsteered,steered", "--kv-type", "q8_0")
    invoke(*options(bundled_f16, bundled_vector_gguf, tmp_path / "q8", *more))
    result = invoke("compare", folder, tmp_path / "q8", "--json")
    found = json.loads(result.stdout)
    assert [(c["before"], c["after"], c["problems"], c["left_out"]) for c in found] == [
        ("unsteered", "unsteered", 5, 1),
        ("steered", "steered", 5, 1),
    ]
    table = invoke("compare", f"{folder}:unsteered", f"{tmp_path / 'q8'}:steered")
    assert "differences on the same 5 problems" in table.stdout
    assert "left out 1 problems" in table.stdout
    assert "different sets of problems" in table.stderr
    same = json.loads(invoke("compare", f"{folder}:unsteered", f"{folder}:steered", "--json").stdout)
    summary = json.loads((folder / "summary.json").read_text())
    assert same == [c for c in summary["comparisons"] if (c["before"], c["after"]) == ("unsteered", "steered")]


def test_several_tasks_are_averaged_by_their_problems(folder: Path) -> None:
    _, cells = results.load_results(folder)
    both = {**cells, ("other", "unsteered"): cells["wordproblems", "unsteered"][:2]}
    found = results.summaries(both)
    average = found["", "unsteered"]
    parts = found["wordproblems", "unsteered"], found["other", "unsteered"]
    assert average.samples == 8
    assert average.steps == pytest.approx((6 * parts[0].steps + 2 * parts[1].steps) / 8)
    assert ("", "steered") not in found, "an average over fewer tasks than another's would mislead"


@pytest.mark.parametrize(
    ("arguments", "says", "status"),
    [
        (["eval", "{model}", "--task", "gsm9k"], "gsm9k", 1),
        (["eval", "missing.gguf", "--task", "wordproblems"], "no such file: missing.gguf", 1),
        ([*EVAL, "--methods", "steered"], "needs a vector", 1),
        ([*EVAL, "--methods", "magic"], "allowed are unsteered", 1),
        ([*EVAL, "--method", "dense"], "is not NAME=FILE[:STRENGTH]", 2),
        (
            [*EVAL, "--method", "a={vector}", "--method", "a={vector}:2"],
            "named twice",
            1,
        ),
        ([*EVAL, "--method", "unsteered={vector}"], "named twice", 1),
        (
            [*EVAL, "--methods", "rewriting-prompt", "--rules", "no"],
            "no rules no",
            1,
        ),
        ([*EVAL, "--stop", ""], "a stop string is empty", 1),
        ([*EVAL, "--problems", "3", "--subset", "4"], "a subset of 4", 1),
        ([*EVAL, "--samples", "4"], "temperature", 1),
        ([*EVAL, "--prompt", "Solve it"], "{{question}}", 1),
        (["eval", "{model}", "--task", "wordproblems,wordproblems"], "named twice", 1),
        (
            ["eval", "{abacus}", "--task", "wordproblems", "--backend", "torch", "--quant", "Q4_0"],
            "leave out the quant",
            1,
        ),
        (
            [*EVAL, "--problems", "5", "--out", "{folder}"],
            "was made otherwise",
            1,
        ),
        (["compare", "{folder}", "{empty}"], "no such file", 1),
        (["compare", "{folder}", "{folder}:magic"], "no task with a method that both hold", 1),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    says: str,
    status: int,
    folder: Path,
    bundled_f16: Path,
    bundled_vector_gguf: Path,
    tmp_path: Path,
) -> None:
    words = {
        "model": bundled_f16,
        "folder": folder,
        "empty": tmp_path,
        "abacus": ABACUS,
        "vector": bundled_vector_gguf,
    }
    given = [argument.format(**words) for argument in arguments]
    if given[0] == "eval" and not {"-o", "--out"} & {*given}:
        given += ["--out", str(tmp_path / "out")]
    result = invoke(*given)
    assert result.exit_code == status, result.output
    assert says.format() in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.output
    assert not (tmp_path / "out" / "summary.json").exists()


def test_rows_of_something_else_are_no_results(tmp_path: Path) -> None:
    with records.Store.open(tmp_path / "rows.jsonl", {"format": "other"}):
        pass
    with pytest.raises(EdgeSteerError, match="no rows of an evaluation"):
        results.load_results(tmp_path)
