"""`import edge_steer as es`: light, complete, and the same things as in the wings."""

import inspect
from pathlib import Path

import pytest
from paths import ABACUS, DENSE
from test_architecture import loaded_by

import edge_steer as es

PROMISED = {
    "read_pairs",
    "extract",
    "load_vector",
    "save_vector",
    "load",
    "ask",
    "evaluate",
    "summarise",
    "compare",
    "sweep",
    "check_parity",
    "certify",
    "convert",
    "quantize",
    "steer",
    "SteeringVector",
    "Steering",
    "Pair",
    "Request",
    "Sampling",
    "Completion",
    "Task",
    "Row",
    "EdgeSteerError",
}
QUESTION = "Tom has 20 pears. Tom finds 11 pears. Tom loses 25 pears. How many pears does Tom have now?"


def test_importing_loads_nothing_heavy() -> None:
    heavy = {"numpy", "torch", "llama_cpp", "transformers", "click", "rich", "huggingface_hub"}
    assert loaded_by("import edge_steer", heavy) == []
    assert loaded_by("import edge_steer as es; es.EdgeSteerError", heavy) == []


def test_every_name_is_there_and_documented() -> None:
    assert PROMISED <= set(es.__all__) == set(dir(es))
    for name in es.__all__:
        assert inspect.getdoc(getattr(es, name)), name


def test_no_name_hides_a_wing() -> None:
    wings = {path.parent.name for path in Path(es.__file__).parent.glob("*/__init__.py")}
    assert not wings & set(es.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'vectorise'"):
        es.vectorise  # noqa: B018


def test_six_lines_from_pairs_to_a_steered_answer(bundled_f16: Path) -> None:
    vector = es.extract(str(ABACUS), es.read_pairs(str(ABACUS / "pairs.jsonl")), layers=[5])
    with es.load(str(bundled_f16), options=es.EngineOptions(threads=1)) as model:
        plain = es.ask(model, QUESTION)
        dense = es.ask(model, QUESTION, steer=vector * 0.325)
    assert "\\boxed{6}" in str(plain) and "\\boxed{6}" in str(dense)
    assert str(dense).count("\n\n") < str(plain).count("\n\n")


def test_pairs_may_be_a_file_and_the_model_a_name(bundled_f16: Path) -> None:
    of_file = es.extract(bundled_f16, str(ABACUS / "pairs.jsonl"), layers=[5])
    with es.load(bundled_f16, options=es.EngineOptions(threads=1)) as model:
        assert es.extract(model, es.read_pairs(ABACUS / "pairs.jsonl"), layers=[5]) == of_file
    assert "boxed{6}" in str(es.ask(str(bundled_f16), QUESTION))


def test_a_shipped_vector_knows_how_it_is_used() -> None:
    vector = es.load_vector(DENSE)
    assert vector.tuning is not None
    assert (vector.tuning.layers, vector.tuning.strength, vector.tuning.phase) == ((5,), 0.325, "all")
    assert es.load_vector(str(DENSE / "vector.gguf")) == vector
