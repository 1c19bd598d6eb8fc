"""DenseSteer's other tasks, MMLU, BBH and HotpotQA, run through the harness in their shapes on items of our own."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from paths import ROOT

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

import lm_eval
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

import edge_steer.plugins.lm_eval_model  # noqa: F401  # makes the name edge_steer known
from edge_steer.commands.main import main

SHAPES = Path(__file__).parent / "harness_shapes"
LENGTHS = {"mmlu": 256, "bbh": 1024, "hotpotqa": 512}  # of DenseSteer's answers
ITEMS = 6
HARNESS = {  # where the harness's own task stands
    "mmlu": "mmlu/generative/_default_template_yaml",
    "bbh": "bbh/cot_zeroshot/multistep_arithmetic_two.yaml",
    "hotpotqa": "longbench/hotpotqa.yaml",
}


class Loader(yaml.SafeLoader):  # type: ignore[misc]
    """The harness's YAML, whose functions are names here."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bundled_f16: Path, bundled_vector_gguf: Path) -> Mapping[str, Path]:
    """Folders of a plain and of a steered run of the three tasks, each with its own length."""
    folder = tmp_path_factory.mktemp("harness")
    manager = TaskManager(include_path=str(SHAPES), include_defaults=False)
    plain = {"model": str(bundled_f16), "max_length": 2048, "threads": 1}
    steered = {**plain, "vector": str(bundled_vector_gguf), "strength": 0.3, "layers": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name, arguments in (("plain", plain), ("steered", steered)):
            tracker = EvaluationTracker(output_path=str(folder / name))
            for task, length in LENGTHS.items():
                found = lm_eval.simple_evaluate(
                    "edge_steer", model_args=arguments, tasks=[f"shape_{task}"], task_manager=manager, num_fewshot=0,
                    apply_chat_template=True, gen_kwargs=f"max_gen_toks={length}", bootstrap_iters=0,
                    evaluation_tracker=tracker,
                )  # fmt: skip
                tracker.save_results_aggregated(found, found["samples"])
                tracker.save_results_samples(f"shape_{task}", found["samples"][f"shape_{task}"])
    return {name: folder / name for name in ("plain", "steered")}


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    (file,) = folder.glob(f"**/samples_shape_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("task", LENGTHS)
def test_the_shape_is_the_harness_own(task: str) -> None:
    folder = Path(lm_eval.__file__).parent / "tasks"
    ours, theirs = (yaml.load(path.read_text(), Loader) for path in (SHAPES / f"{task}.yaml", folder / HARNESS[task]))
    if base := theirs.get("include"):
        theirs = yaml.load((folder / HARNESS[task]).with_name(base).read_text(), Loader) | theirs
    assert theirs.get("output_type", "generate_until") == ours["output_type"] == "generate_until"
    assert [ours[key] for key in ("doc_to_text", "generation_kwargs")] == [
        theirs[key] for key in ("doc_to_text", "generation_kwargs")
    ]


@pytest.mark.parametrize("task", LENGTHS)
def test_each_task_is_asked_zero_shot_in_the_chat_template_with_its_length(task: str, runs: Mapping[str, Path]) -> None:
    rows = samples(runs["plain"], task)
    assert len({row["doc_id"] for row in rows}) == ITEMS
    for row in rows:
        prompt, settings = row["arguments"]["gen_args_0"]["arg_0"], row["arguments"]["gen_args_0"]["arg_1"]
        assert settings["max_gen_toks"] == LENGTHS[task] and not settings.get("do_sample")
        assert prompt.count("<|im_start|>user\n") == 1 and prompt.endswith("<|im_start|>assistant\n")
        assert prompt.count("<|im_start|>assistant") == 1
    if task == "mmlu":
        assert all("\n" not in row["resps"][0][0] for row in rows)


def test_a_steered_run_is_compared_with_a_plain_one_question_by_question(runs: Mapping[str, Path]) -> None:
    said = {
        name: {(task, row["doc_id"]): row["resps"][0][0] for task in LENGTHS for row in samples(folder, task)}
        for name, folder in runs.items()
    }
    assert said["plain"].keys() == said["steered"].keys() and said["plain"] != said["steered"]
    result = CliRunner().invoke(main, ["compare", str(runs["plain"]), str(runs["steered"])], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for task, metric in (("mmlu", "exact_match"), ("bbh", "exact_match"), ("hotpotqa", "qa_f1_score")):
        [*lines] = [line for line in result.output.splitlines() if f"shape_{task}" in line and metric in line]
        assert lines, result.output


def test_the_bundled_model_solves_the_word_problems_among_them(runs: Mapping[str, Path]) -> None:
    right = [row["exact_match"] for row in samples(runs["plain"], "bbh") if row["filter"] == "flexible-extract"]
    assert len(right) == ITEMS and sum(right) >= ITEMS / 2
