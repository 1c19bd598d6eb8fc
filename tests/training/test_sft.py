"""Training on teachers' solutions: what is read and mixed, that they become likelier, that a kill costs nothing."""

import json
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from paths import ABACUS

from edge_steer.commands.main import main
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import Progress
from edge_steer.reference.model import Reference
from edge_steer.storage.records import read
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.wordproblems import problems, solution
from edge_steer.training.records import LOG
from edge_steer.training.settings import Adapter, SftSettings
from edge_steer.training.sft import Demonstration, mix, read_demonstrations, read_learnability, train_sft

LORA = Adapter("lora")
SETTINGS = SftSettings(epochs=1, batch=4, learning_rate=0.01, held_out=3)


def write(path: Path, density: float, count: int = 11) -> Path:
    """Solutions told with a density, of which every fourth is wrong."""
    random_state = random.Random(0)
    lines = []
    for number, problem in enumerate(islice(problems("train"), count)):
        answer = problem.answer + (number % 4 == 3)
        text = solution(problem, density, random_state)
        lines.append({"question": problem.question, "solution": text, "answer": str(answer)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Stopped(Exception):
    pass


class StopsAfterOne(Progress):
    def __call__(self, doing: str, done: int = 0, total: int = 1) -> None:
        if done == 1:
            raise Stopped


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return {"dense": write(folder / "dense.jsonl", 1.0), "sparse": write(folder / "sparse.jsonl", 0.0)}


def test_wrong_solutions_are_left_out(teachers: dict[str, Path], tmp_path: Path) -> None:
    assert len(read_demonstrations("dense", teachers["dense"])) == 11
    with Graders() as graders:
        assert len(read_demonstrations("dense", teachers["dense"], graders)) == 9
    generated = tmp_path / "generated.jsonl"
    lines = [
        {"format": "edge-steer solutions 1"},
        {"question": "1+1", "prompt": "1+1?", "system": "add", "text": "2", "correct": True, "finish": "stop"},
        {"question": "1+2", "prompt": "1+2?", "system": None, "text": "4", "correct": False, "finish": "stop"},
        {"question": "1+3", "prompt": "1+3?", "system": None, "text": "4", "correct": True, "finish": "length"},
        {"chosen": []},
    ]
    generated.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_demonstrations("own", generated) == [Demonstration("own", "1+1?", "2", "add")]
    generated.write_text('{"question": "1+1"}\n')
    with pytest.raises(EdgeSteerError, match="line 1 has no question and solution"):
        read_demonstrations("own", generated)


def test_teachers_are_mixed_by_their_shares() -> None:
    by_teacher = {
        name: [Demonstration(name, f"{i}", "") for i in range(count)] for name, count in (("a", 50), ("b", 80))
    }
    mixed = mix(by_teacher, {"a": 0.2, "b": 0.8}, 0)
    assert sorted(one.teacher for one in mixed) == ["a"] * 20 + ["b"] * 80
    assert len(set(mixed)) == 100
    assert mixed != mix(by_teacher, {"a": 0.2, "b": 0.8}, 1)
    with pytest.raises(EdgeSteerError, match="b has one alone"):
        mix(by_teacher, {"a": 1.0}, 0)


def test_solutions_become_likelier_and_a_stopped_training_goes_on(
    teachers: dict[str, Path], bundled: Reference, tmp_path: Path
) -> None:
    rows = read_demonstrations("dense", teachers["dense"])
    result = train_sft(bundled, rows, SETTINGS, tmp_path / "whole", adapter=LORA)
    assert result.after["dense"] < 0.98 * result.before["dense"]
    [logged, steps] = read(tmp_path / "whole" / LOG)
    assert len(steps) == 2
    assert logged["solutions"]["count"] == 11

    with pytest.raises(Stopped):
        train_sft(bundled, rows, SETTINGS, tmp_path / "halves", adapter=LORA, progress=StopsAfterOne())
    again = train_sft(bundled, rows, SETTINGS, tmp_path / "halves", adapter=LORA)
    assert again.after == result.after
    assert read_learnability(tmp_path / "halves") == (dict(result.before), dict(result.after))


def test_likelihood_is_that_of_the_answer_in_the_chat_template(
    teachers: dict[str, Path], bundled: Reference, tmp_path: Path
) -> None:
    """Of a solution and its end token, behind the prompt as a user asks it."""
    rows = read_demonstrations("dense", teachers["dense"])[:4]
    result = train_sft(bundled, rows, SftSettings(epochs=1, learning_rate=1e-9, held_out=3), tmp_path, adapter=LORA)
    nlls = []
    for one in rows[1:]:
        prompt = bundled.chat(one.messages)
        text = bundled.encode(one.solution + "<|im_end|>", start=False)
        nlls.append(bundled.nll((*prompt, *text), len(prompt)).mean())
    assert result.before["dense"] == pytest.approx(float(np.mean(nlls)), abs=1e-4)


def test_the_command_prints_learnability_and_writes_what_was_trained(teachers: dict[str, Path], tmp_path: Path) -> None:
    data = [word for name, file in teachers.items() for word in ("--data", f"{name}={file}")]
    options = ["--lr", "0.01", "--epochs", "1", "--adapter", "lora", "--held-out", "2", "--threads", "1"]
    command = ["train", "sft", str(ABACUS), *data, "--mix", "dense=0.5,sparse=0.5", "-o", str(tmp_path), *options]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "NLL before" in result.output
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    refused = CliRunner().invoke(main, [*command[:-2], "--mix", "dense"])
    assert refused.exit_code == 2
    assert "is not of the form --mix TEACHER=SHARE" in refused.output
