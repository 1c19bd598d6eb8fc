"""The harness's own PyTorch model, steered by the harness's own hooks, is what the adapter is compared with."""

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from paths import ROOT

from edge_steer.commands.main import main
from edge_steer.core.backend import Message, Request
from edge_steer.core.errors import EdgeSteerError, ModelError, RequestError, VectorError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.harness import read_samples
from edge_steer.models.load import load
from edge_steer.plugins.lm_eval_model import EdgeSteerLM, ModelArguments, with_model
from edge_steer.reference.model import Reference
from edge_steer.vectors import read

ABACUS = ROOT / "models" / "abacus"
LAYER, STRENGTH = 3, 1.0
EXACT: dict[str, Any] = {"kv_type": "f32", "flash_attention": "off", "threads": 1}
QUESTION = "Ben has {} cups. Ben buys 2 boxes of 4 cups. How many cups does Ben have now?"
PROMPT = "<|im_start|>user\n" + QUESTION + "<|im_end|>\n<|im_start|>assistant\n"
ROWS: dict[str, list[dict[str, Any]]] = {
    "answers": [{"question": QUESTION.format(n), "answer": str(n + 8)} for n in (3, 11, 25, 40)],
    "choices": [
        {"context": PROMPT.format(n), "choices": [f"Ben starts with {n} cups", f"{n + 8} ", "2 * 4 = 8"], "gold": 0}
        for n in (4, 12, 30)
    ],
    "texts": [{"text": " ".join(QUESTION.format(n) for n in range(first, 60, 17))} for first in (1, 20, 50)],
}
TASKS = {
    "answers": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["cakes", " * 4"], max_gen_toks: 30, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "choices": """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
target_delimiter: ""
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "texts": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of each kind and its data."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, body in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
        head = f"task: local_{name}\ndataset_path: json\ntest_split: test\n"
        files = f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        (folder / f"{name}.yaml").write_text(head + files + body.lstrip())
    return folder


@pytest.fixture(scope="module")
def manager(tasks: Path) -> TaskManager:
    return TaskManager(include_path=str(tasks), include_defaults=False)


@pytest.fixture(scope="module")
def plain(bundled_f32: Path) -> Iterator[EdgeSteerLM]:
    model = EdgeSteerLM(str(bundled_f32), **EXACT)
    yield model
    model.close()


@pytest.fixture(scope="module")
def peer_steer_file(bundled_vector: SteeringVector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peer") / "steer.pt"
    vector = torch.tensor(bundled_vector.directions[LAYER])
    step = {"steering_vector": vector, "steering_coefficient": STRENGTH, "action": "add"}
    torch.save({f"layers.{LAYER}": step}, path)
    return path


def results(model: Any, manager: TaskManager, arguments: dict[str, Any] | None = None, **options: Any) -> Any:
    names = [f"local_{name}" for name in TASKS]
    return lm_eval.simple_evaluate(
        model, model_args=arguments, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True, **options
    )


def answers(found: Any, task: str) -> list[Any]:
    """What the model said to each document, in their order."""
    samples = sorted(found["samples"][f"local_{task}"], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


@pytest.mark.parametrize("steered", [False, True], ids=["unsteered", "steered"])
@pytest.mark.parametrize(("chat", "max_length"), [(False, 48), (True, 192)], ids=["raw and cut", "chat"])
def test_every_kind_of_request_is_answered_as_the_harness_own_model_does(
    steered: bool,
    chat: bool,
    max_length: int,
    bundled_f32: Path,
    bundled_vector_gguf: Path,
    peer_steer_file: Path,
    manager: TaskManager,
) -> None:
    pytest.importorskip("accelerate", reason="the harness's own model needs accelerate")
    ours: dict[str, Any] = {"model": str(bundled_f32), **EXACT, "max_length": max_length}
    theirs: dict[str, Any] = {"pretrained": str(ABACUS), "dtype": "float32", "max_length": max_length, "device": "cpu"}
    if steered:
        ours |= {"vector": str(bundled_vector_gguf), "strength": STRENGTH, "layers": LAYER}
        theirs["steer_path"] = str(peer_steer_file)
    found = results("edge_steer", manager, ours, apply_chat_template=chat)
    peer = results("steered" if steered else "hf", manager, theirs, apply_chat_template=chat)
    said = answers(found, "answers")
    assert said == answers(peer, "answers")
    assert all(text.endswith("2") if chat else len(text) > 20 for ((text,),) in said)
    for task in ("choices", "texts"):
        for mine, other in zip(answers(found, task), answers(peer, task), strict=True):
            assert_close(mine, other)
    for task in TASKS:
        for metric, value in peer["results"][f"local_{task}"].items():
            if isinstance(value, float):
                assert found["results"][f"local_{task}"][metric] == pytest.approx(value, rel=1e-4), metric
    assert [step["layers"] for step in found["config"]["steering"]] == [[LAYER]] * steered


def assert_close(mine: Any, other: Any) -> None:
    """Nested lists of log-likelihoods and flags."""
    if isinstance(mine, (list, tuple)):
        assert len(mine) == len(other)
        for a, b in zip(mine, other, strict=True):
            assert_close(a, b)
    else:
        assert mine == pytest.approx(other, abs=2e-3, rel=1e-5)


def asked(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=given, idx=i) for i, given in enumerate(arguments)]


def test_phase_generated_scores_and_answers_as_the_torch_reference_does(
    bundled_f32: Path, bundled_vector_gguf: Path, bundled: Reference
) -> None:
    arguments: dict[str, Any] = {
        "vector": str(bundled_vector_gguf),
        "strength": 0.3,
        "layers": "2+4-5",
        "phase": "generated",
    }
    model = EdgeSteerLM(str(bundled_f32), **arguments, **EXACT)
    steering = [Steering(read.load(bundled_vector_gguf), 0.3, (2, 4, 5), "generated")]
    prompts = [bundled.encode(PROMPT.format(n)) for n in (5, 9, 33)]
    settings = {"until": [], "max_gen_toks": 25}
    texts = model.generate_until(asked("generate_until", *((PROMPT.format(n), settings) for n in (5, 9, 33))))
    expected = bundled.generate([Request(prompt, 25, tuple(steering)) for prompt in prompts])
    assert texts == [completion.text for completion in expected] and len(set(texts)) == 3

    started = PROMPT.format(5) + "Ben"
    pairs = [(started, " starts with 5"), (started, " has 5"), (PROMPT.format(9), texts[1]), ("", "1")]
    found = model.loglikelihood(asked("loglikelihood", *pairs))
    for (context, continuation), (logprob, greedy) in zip(pairs, found, strict=True):
        whole = bundled.encode(context + continuation)
        head = bundled.encode(context.rstrip())  # the harness scores a context's last spaces with the continuation
        tokens, prompt = (whole, len(head)) if context else ((2, *whole), 1)
        nll = bundled.nll(tokens, prompt, steering)
        best = bundled.logits(tokens, prompt, steering)[:-1].argmax(axis=1)
        assert logprob == pytest.approx(-nll.sum(), abs=2e-3)
        assert greedy == bool((best == tokens[prompt:]).all())
    assert [greedy for _, greedy in found[:2]] == [True, False]
    model.close()


def test_sampled_answers_differ_from_each_other_and_come_again(plain: EdgeSteerLM) -> None:
    settings = {"until": "<|im_end|>", "do_sample": True, "temperature": 3.0, "top_k": 40, "max_gen_toks": 20}
    requests = asked("generate_until", *[(PROMPT.format(7), settings)] * 4)
    found = plain.generate_until(requests)
    assert len(set(found)) == 4 and found == plain.generate_until(requests)
    greedy = plain.generate_until(asked("generate_until", (PROMPT.format(7), {**settings, "do_sample": False})))
    assert greedy[0].startswith("Ben starts with 7 cups.")


def test_what_cannot_be_honoured_is_refused_in_one_line(
    plain: EdgeSteerLM, bundled_f32: Path, bundled_vector_gguf: Path
) -> None:
    path, vector = str(bundled_f32), str(bundled_vector_gguf)
    bad: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ModelError, "no model argument lyers", {"lyers": 3}),
        (ModelError, "layers and phase need a vector", {"layers": 3}),
        (VectorError, "layer 9", {"vector": vector, "layers": 9}),
        (VectorError, "no phase 'some'", {"vector": vector, "phase": "some"}),
    ]
    for error, said, arguments in bad:
        with pytest.raises(error, match=said):
            EdgeSteerLM(path, **arguments)
    for said, settings in [
        ("no generation setting beams", {"beams": 3}),
        ("max_gen_toks is 1024; it must be 1 to 1023", {"max_gen_toks": 1024}),
    ]:
        with pytest.raises(RequestError, match=said):
            plain.generate_until(asked("generate_until", ("Why?", settings)))
    with pytest.raises(RequestError, match="a continuation of 0 tokens"):
        plain.loglikelihood(asked("loglikelihood", ("Why?", "")))
    with pytest.raises(ModelError, match="no chat template 'rag'"):
        plain.chat_template("rag")


def test_the_chat_template_gives_the_tokens_the_engine_gives(plain: EdgeSteerLM) -> None:
    turns = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Yes?"), ("user", QUESTION.format(4))]
    history = [{"role": role, "content": content} for role, content in turns]
    text = plain.apply_chat_template(history)
    assert (
        text
        == "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns) + "<|im_start|>assistant\n"
    )
    assert tuple(plain.tok_encode(text)) == plain.engine.chat([Message(role=r, content=c) for r, c in turns])
    assert plain.chat_template(True) and plain.chat_template(False) == ""
    prefilled = [*history, {"role": "assistant", "content": "Ben starts"}]
    assert plain.apply_chat_template(prefilled, add_generation_prompt=False) == text + "Ben starts"


def test_the_command_line_runs_the_harness_on_the_model(
    tasks: Path,
    tmp_path: Path,
    bundled_f32: Path,
    bundled_vector_gguf: Path,
    manager: TaskManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", sys.argv)
    arguments = {"model": str(bundled_f32), **EXACT, "vector": str(bundled_vector_gguf), "layers": LAYER}
    line = ["lm-eval", "run", "--tasks", str(tasks / "answers.yaml"), "--apply_chat_template", "--log_samples"]
    line += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    done = CliRunner().invoke(main, [*line, "--output_path", str(tmp_path / "out.json")], catch_exceptions=False)
    assert done.exit_code == 0
    (file,) = tmp_path.glob("**/samples_*.jsonl")
    said = {row["doc_id"]: row["resps"] for row in map(json.loads, file.read_text().splitlines())}
    expected = answers(results("edge_steer", manager, arguments, apply_chat_template=True), "answers")
    assert [said[index] for index in range(4)] == [[list(text) for text in row] for row in expected]
    assert {measure: len(values) for measure, values in read_samples(tmp_path).items()} == {
        ("local_answers", "none", "exact_match"): 4
    }


def test_a_template_of_ones_own_its_date_and_plain_text(bundled_f16: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}")
    turns = [{"role": "user", "content": "Hi."}]
    for template, date, text in (
        (str(tmp_path / "chat.jinja"), "2024-07-26", "26 Jul 2024: Hi."),
        ("none", None, "Hi."),
    ):
        model = EdgeSteerLM(str(bundled_f16), template=template, date=date, threads=1)
        assert model.apply_chat_template(turns) == text
        model.close()
    for wrong, error in (("absent.jinja", "no such file: absent.jinja"), (str(bundled_f16), "is not UTF-8 at byte")):
        with pytest.raises(EdgeSteerError, match=error):
            EdgeSteerLM(str(bundled_f16), template=wrong)


def test_an_adapter_runs_in_the_harness(bundled_f32: Path, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "lora.gguf", "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    random = np.random.default_rng(0)
    for half, shape in (("a", (1, 512)), ("b", (256, 1))):
        writer.add_tensor(f"blk.2.ffn_down.weight.lora_{half}", random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = EdgeSteerLM(str(bundled_f32), lora=f"{tmp_path / 'lora.gguf'}:0.5", **EXACT)
    logits = model.engine.logits(range(5, 25), 1)
    with load(bundled_f32, options=model.engine.options) as adapted, load(bundled_f32) as plain:
        assert np.array_equal(logits, adapted.logits(range(5, 25), 1))
        assert np.abs(logits - plain.logits(range(5, 25), 1)).max() > 0.5
    assert model.engine.provenance.backend["lora"]["scale"] == 0.5


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["run", "--tasks", "x"], True),
        (["--tasks", "x"], True),
        (["run", "--model", "hf", "--tasks", "x"], False),
        (["-M", "hf"], False),
        (["--model=hf"], False),
        (["--config", "run.yaml"], False),
        (["ls", "tasks"], False),
        (["run", "--help"], False),
        ([], False),
    ],
)
def test_our_model_is_the_commands_default(given: list[str], added: bool) -> None:
    assert with_model(given) == given + ["--model", "edge_steer"] * added


def test_the_command_hands_over_to_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    shown = CliRunner().invoke(main, ["lm-eval", "run", "--help"])
    assert shown.exit_code == 0 and "--model_args" in shown.output


def test_the_docs_name_every_model_argument() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "lm-eval.md").read_text(), re.MULTILINE)
    assert documented == ["model", *(field.name for field in fields(ModelArguments))]
