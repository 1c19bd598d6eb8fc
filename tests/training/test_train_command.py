"""`edge-steer train` as a user types it, on the bundled model."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from paths import ABACUS

import edge_steer as es
from edge_steer.commands.main import main
from edge_steer.training.plots import plot_training
from edge_steer.training.records import TrainingLog

TRAIN = [
    "train", "rloo", str(ABACUS), "--quant", "Q4_K_M", "--task", "wordproblems-leaps", "--problems", "20",
    "--prompts", "2", "--generations", "3", "-n", "190", "--lr", "0.3", "--threads", "1", "--kl", "0.01",
    "--loss", "sequence",
]  # fmt: skip


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps, one at a time: a finished training goes on with more of them."""
    folder = tmp_path_factory.mktemp("trained")
    for steps in ("1", "2"):
        result = invoke(*TRAIN, "--steps", steps, "--keep-every", "2", "-o", str(folder))
        assert result.exit_code == 0, result.output
        assert "wrote" in result.output
    return folder


def test_a_quantised_file_is_trained_on(folder: Path) -> None:
    log = TrainingLog.read(folder)
    assert len(log.steps) == 2
    assert log.header["sampler"]["model"]["quant"] == "Q4_K_M"
    assert log.header["policy"]["backend"]["name"] == "torch"
    assert log.header["settings"]["loss"] == "sequence"
    gaps = [step.gap.mean for step in log.steps if step.gap]
    assert all(1e-4 < gap < 0.1 for gap in gaps)
    assert all(step.kl is not None and step.kl >= 0 for step in log.steps)


def test_its_vector_is_exported_without_layer_0(folder: Path, tmp_path: Path) -> None:
    vector = es.load_vector(folder / "vector.safetensors")
    assert (
        vector == es.load_vector(folder / "step-00002.safetensors")
        or vector.norms == es.load_vector(folder / "step-00002.safetensors").norms
    )
    result = invoke("export", str(folder / "vector.safetensors"), "-o", str(tmp_path / "vector.gguf"))
    assert result.exit_code == 0, result.output
    assert "layer 0 left out" in result.output
    exported = es.load_vector(tmp_path / "vector.gguf")
    assert exported.layers == (1, 2, 3, 4, 5)
    assert exported.norms == pytest.approx({layer: vector.norms[layer] for layer in exported.layers})


def test_show_prints_the_log_and_draws_it(folder: Path) -> None:
    result = invoke("train", "show", str(folder))
    assert result.exit_code == 0, result.output
    assert "2 x 3 answers a step, learning rate 0.3" in result.output
    assert "reward" in result.output
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(es.EdgeSteerError, match="no step yet"):
        plot_training(TrainingLog(TrainingLog.read(folder).header, ()), folder / "none.png")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--loss", "token"], "was made otherwise: settings.loss is"),
        (["--layers", "9"], "layer 9 asked"),
        (["--device", "nowhere"], "PyTorch cannot use the device 'nowhere'"),
        (["--task", "math500"], "math500"),
    ],
)
def test_what_cannot_be_is_one_line(folder: Path, options: list[str], complaint: str) -> None:
    result = invoke(*TRAIN, "--steps", "2", "-o", str(folder), *options)
    assert result.exit_code == 1
    assert complaint in result.output
    assert "Traceback" not in result.output


def test_problems_of_an_evaluation_are_not_trained_on(tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "Mia has 3 apples and buys 4. How many?", "answer": "#### 7"}\n')
    result = invoke(*TRAIN, "--task", f"gsm8k={problems}", "--evaluation", f"gsm8k={problems}", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "every problem of gsm8k is an evaluation problem" in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_training_is_refused(tmp_path: Path) -> None:
    result = invoke("train", "show", str(tmp_path))
    assert result.exit_code == 1
    assert "log.jsonl" in result.output


def test_the_command_answers_without_loading_torch() -> None:
    code = "import sys\nfrom edge_steer.commands import train\nprint({'torch', 'llama_cpp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
