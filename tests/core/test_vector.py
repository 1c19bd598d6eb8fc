"""The values: arithmetic, exact files, digests, tuning, and what is refused."""

import json
import operator
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from edge_steer.core.backend import Request
from edge_steer.core.errors import EdgeSteerError, VectorError
from edge_steer.core.steering import Offsets, Steering, steerings
from edge_steer.core.vector import PHASES, ModelIdentity, Phase, SteeringVector, Tuning, parse_layers, spans
from edge_steer.vectors import native

MODEL = ModelIdentity("tiny", "qwen2", hidden_size=4, block_count=6, revision="abc")
RAMP, FLAT = np.array([0, 1, 2, 3], np.float32), np.full(4, 1, np.float32)
A = SteeringVector({1: RAMP, 3: FLAT}, MODEL, method="mean-difference", pooling="last", pairs=7)
B = SteeringVector({3: np.full(4, 0.5, np.float32), 5: -RAMP}, MODEL)


def values(vector: SteeringVector) -> dict[int, list[float]]:
    return {layer: direction.tolist() for layer, direction in vector.directions.items()}


def test_a_vector_is_frozen_float32_and_a_copy() -> None:
    source = np.ones(4, np.float32)
    vector = SteeringVector({2: source}, MODEL)
    source[:] = 9
    assert values(vector) == {2: [1, 1, 1, 1]}
    assert vector.directions[2].dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        vector.directions[2][0] = 5
    with pytest.raises(FrozenInstanceError):
        vector.method = "other"  # type: ignore[misc]


def test_arithmetic() -> None:
    assert values(A + B) == {1: [0, 1, 2, 3], 3: [1.5] * 4, 5: [0, -1, -2, -3]}
    assert values(A - B) == {1: [0, 1, 2, 3], 3: [0.5] * 4, 5: [0, 1, 2, 3]}
    assert values(2 * A) == values(A * np.float32(2)) == values(A * 2.0) == {1: [0, 2, 4, 6], 3: [2] * 4}
    assert values(A / 4) == {1: [0, 0.25, 0.5, 0.75], 3: [0.25] * 4}
    assert values(A + -A) == {1: [0] * 4, 3: [0] * 4}
    with pytest.raises(VectorError, match="divide a vector by 0"):
        A / 0


def test_arithmetic_tells_its_provenance_and_forgets_normalised() -> None:
    unit = replace(A, normalised=True)
    product = unit * 0.5 + B
    assert not product.normalised
    assert len(product.provenance) == 2
    assert product.provenance[0] == f"{unit.digest[:12]} * 0.5"
    assert product.method == "mean-difference"


def test_vectors_of_different_models_do_not_add() -> None:
    for other in (
        replace(MODEL, architecture="llama"),
        replace(MODEL, block_count=7),
        replace(MODEL, architecture="llama", block_count=0),
    ):
        with pytest.raises(VectorError, match="is of tiny"):
            A + replace(B, model=other)
    nameless = replace(B, model=ModelIdentity("unknown", None, hidden_size=4, block_count=0))
    assert (A + nameless).layers == (1, 3, 5)
    assert (nameless + A).model == (A + nameless).model == MODEL
    with pytest.raises(VectorError, match="is of tiny"):
        (nameless + A).project_out(replace(B, model=replace(MODEL, architecture="llama")))


def test_project_out_leaves_what_is_orthogonal() -> None:
    rng = np.random.default_rng(0)
    first, second = (
        SteeringVector({layer: rng.standard_normal(4).astype(np.float32) for layer in layers}, MODEL)
        for layers in ((0, 1, 3), (1, 3, 5))
    )
    projected = first.project_out(second)
    assert projected.layers == (0, 1, 3)
    assert np.array_equal(projected.directions[0], first.directions[0])
    for layer in (1, 3):
        mine, theirs, left = (vector.directions[layer].astype(float) for vector in (first, second, projected))
        assert abs(left @ theirs) < 1e-6
        assert np.linalg.norm(mine) ** 2 == pytest.approx(left @ left + (mine @ theirs) ** 2 / (theirs @ theirs))
    assert projected.provenance == (f"{first.digest[:12]} without {second.digest[:12]}",)
    again = projected.project_out(second)
    assert all(np.allclose(again.directions[n], projected.directions[n], atol=1e-6) for n in (0, 1, 3))
    with pytest.raises(VectorError, match="layers 0 and 1, 3, 5 have none in common"):
        first.at([0]).project_out(second)
    with pytest.raises(VectorError, match="layer 1 of the vector to project out is zero"):
        first.project_out(second - second)
    with pytest.raises(VectorError, match="is of tiny"):
        first.project_out(replace(second, model=replace(MODEL, architecture="llama")))


def test_norms_and_restrict() -> None:
    assert A.norms == pytest.approx({1: 14**0.5, 3: 2.0})
    assert A.at([3, 3]).layers == (3,)
    with pytest.raises(VectorError, match="vector has layers 1, 3; layer 2 asked; tiny"):
        A.at([1, 2])
    with pytest.raises(VectorError, match="no layer asked"):
        A.at([])


def test_digest_depends_on_values_layers_and_header_alone() -> None:
    same = SteeringVector({3: FLAT, 1: RAMP}, MODEL, "mean-difference", "last", 7)
    assert same.digest == A.digest
    changed = dict(A.directions)
    changed[1] = np.nextafter(changed[1], np.float32(9))
    others = [
        replace(A, directions=changed),
        replace(A, directions={1: A.directions[1], 4: A.directions[3]}),
        replace(A, pairs=8),
        replace(A, model=replace(MODEL, revision=None)),
        A * 1.0,
    ]
    assert len({A.digest, *(other.digest for other in others)}) == 6


def test_save_and_load_are_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    directions = {i: rng.standard_normal(4).astype(np.float32) for i in range(6)}
    directions[0][0], directions[0][1] = np.float32(1e-42), np.float32(-0.0)
    vector = SteeringVector(directions, MODEL, "m", "last", 3, "d" * 64, True, ("a + b", "* 2"))
    native.save(vector, tmp_path / "v.safetensors")
    again = native.load(tmp_path / "v.safetensors")
    assert again.digest == vector.digest
    assert again.model == MODEL
    assert (again.provenance, again.normalised, again.pairs_digest) == (("a + b", "* 2"), True, "d" * 64)
    for layer in range(6):
        assert again.directions[layer].tobytes() == directions[layer].tobytes()


@pytest.mark.parametrize(
    ("directions", "words"),
    [
        ({}, "no layers"),
        ({-1: np.ones(4)}, "layer -1"),
        ({6: np.ones(4)}, r"layer 6; tiny \(qwen2, width 4, blocks 0-5\) has no such block"),
        ({1: np.ones(5)}, r"shape \(5,\).*needs \(4,\)"),
        ({1: np.ones((1, 4))}, r"shape \(1, 4\)"),
        ({1: np.array([1, np.nan, 0, 0])}, "NaN or Inf"),
        ({1: np.array([1, np.inf, 0, 0])}, "NaN or Inf"),
    ],
)
def test_refused_vectors(directions: dict[int, np.ndarray], words: str) -> None:
    with pytest.raises(VectorError, match=words):
        SteeringVector(directions, MODEL)


def header_of(vector: SteeringVector, **changes: object) -> dict[str, str]:
    return {"edge_steer": json.dumps({**vector.header(), **changes})}


def saved(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None) -> None:
    safetensors.numpy.save_file(tensors, path, metadata)


ONES = {"direction.1": np.ones(4, np.float32)}
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "a folder": (lambda path: path.mkdir(), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("a text and no tensors"), "not a steering vector"),
    "huge header": (lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"), "not a steering vector"),
    "header past the end": (lambda path: path.write_bytes(struct.pack("<Q", 1000) + b"{}"), "not a steering vector"),
    "foreign": (lambda path: saved(path, ONES, None), "not a steering vector"),
    "metadata not JSON": (lambda path: saved(path, ONES, {"edge_steer": "{"}), "not a steering vector"),
    "other version": (lambda path: saved(path, ONES, header_of(A, format="edge-steer vector 9")), "reads 'edge-steer"),
    "unknown key": (lambda path: saved(path, ONES, header_of(A, surprise=1)), "surprise"),
    "no model": (lambda path: saved(path, ONES, header_of(A, model=None)), "not a steering vector"),
    "float16": (lambda path: saved(path, {"direction.1": np.ones(4, np.float16)}, header_of(A)), "F16; F32"),
    "other name": (lambda path: saved(path, {"bias.1": np.ones(4, np.float32)}, header_of(A)), "only direction.N"),
    "leading zero": (lambda path: saved(path, {"direction.01": np.ones(4, np.float32)}, header_of(A)), "direction.01"),
    "pairs are text": (lambda path: saved(path, ONES, header_of(A, pairs="7")), "'pairs' is '7'"),
    "width is a float": (
        lambda path: saved(path, ONES, header_of(A, model={**asdict(MODEL), "hidden_size": 4.0})),
        "'hidden_size' is 4.0",
    ),
    "provenance of numbers": (lambda path: saved(path, ONES, header_of(A, provenance=[1])), "0 is 1"),
    "a deep header": (lambda path: saved(path, ONES, {"edge_steer": "[" * 50_000}), "not a steering vector"),
    "no tensors": (lambda path: saved(path, {}, header_of(A)), "no layers"),
    "layer out of range": (
        lambda path: saved(path, {"direction.6": np.ones(4, np.float32)}, header_of(A)),
        "no such block",
    ),
    "NaN": (lambda path: saved(path, {"direction.1": np.full(4, np.nan, np.float32)}, header_of(A)), "NaN or Inf"),
    "wrong width": (lambda path: saved(path, {"direction.1": np.ones(5, np.float32)}, header_of(A)), "shape"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    make, words = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    make(path)
    with pytest.raises(EdgeSteerError, match=words) as caught:
        native.load(path)
    assert "\n" not in str(caught.value)


def test_truncation_at_every_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    native.save(A, path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(EdgeSteerError):
            native.load(path)


def test_saving_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(EdgeSteerError, match="cannot write"):
        native.save(A, tmp_path / "absent" / "v.safetensors")


def test_steering_resolves_and_checks() -> None:
    steering = Steering(A, strength=0.5, layers=(3,), phase="generated")
    assert {layer: offset.tolist() for layer, offset in steering.offsets().items()} == {3: [0.5] * 4}
    assert Steering(A).layers == (1, 3)
    with pytest.raises(VectorError, match="layer 5 asked"):
        Steering(A, layers=(5,))
    with pytest.raises(VectorError, match="no phase 'prompt'; allowed are all, generated"):
        Steering(A, phase="prompt")  # type: ignore[arg-type]
    for strength in (float("nan"), float("inf")):
        with pytest.raises(VectorError, match="finite"):
            Steering(A, strength)


@pytest.mark.parametrize("steerings", [[Steering(A, 1e40)], [Steering(A, 0.3e15), Steering(A, 0.3e15)]])
def test_what_could_overflow_is_refused(steerings: list[Steering]) -> None:
    with pytest.raises(VectorError, match=r"would be added at layer 1; it must be at most 1e\+15"):
        Offsets.of(steerings, MODEL)


def test_offsets_add_up_and_zero_is_no_steering() -> None:
    offsets = Offsets.of([Steering(A, 2.0), Steering(B, -1.0, layers=(3,))], MODEL)
    assert offsets is not None
    assert {layer: offset.tolist() for layer, offset in offsets.by_layer.items()} == {1: [0, 2, 4, 6], 3: [1.5] * 4}
    assert Offsets.of([], MODEL) is None
    assert Offsets.of([Steering(A, 0.0)], MODEL) is None
    assert Offsets.of([Steering(A), Steering(A, -1.0)], MODEL) is None
    with pytest.raises(VectorError, match="cannot mix"):
        Offsets.of([Steering(A), Steering(A, phase="generated")], MODEL)
    with pytest.raises(VectorError, match="use one extracted from that model"):
        Offsets.of([Steering(A)], replace(MODEL, hidden_size=8))


def test_each_phase_steers_its_positions() -> None:
    tokens, prompt = (9, 1, 9, 1, 9, 2), 3

    def steered(phase: Phase, first: int = 0) -> list[bool]:
        offsets = Offsets.of([Steering(A, phase=phase)], MODEL)
        assert offsets is not None
        assert offsets.needs_rows == (phase == "delimiter")
        found: list[bool] = replace(offsets, delimiters=(7, 9)).steered(tokens[first:], first, prompt).tolist()
        return found

    assert steered("all") == [True] * 6
    assert steered("generated") == [False, False, True, True, True, True]
    assert steered("delimiter") == [False, False, True, False, True, False]
    for phase in PHASES:
        assert steered(phase, 3) == steered(phase)[3:]
    whole = Offsets.of([Steering(SteeringVector({0: np.ones(4, dtype=np.float32)}, MODEL))], MODEL)
    assert whole and whole.needs_rows


def test_offset_keys_tell_steerings_apart() -> None:
    def key(*steerings: Steering) -> str:
        offsets = Offsets.of(steerings, MODEL)
        assert offsets is not None
        return offsets.key

    assert key(Steering(A, 2.0)) == key(Steering(A * 2.0)) == key(Steering(A), Steering(A))
    assert len({key(Steering(A)), key(Steering(A, phase="generated")), key(Steering(A, 2.0)), key(Steering(B))}) == 4


def test_sum_and_equality_are_those_of_the_values() -> None:
    assert sum([A, B]) == A + B
    assert replace(A, tuning=None, directions=dict(A.directions)) == A
    assert A != B
    assert A != "A"
    assert {A, A * 1, A * 1} == {A, A * 1}
    assert hash(A) == hash(A.tuned(3))


def test_a_repr_is_one_short_line() -> None:
    wide = SteeringVector({layer: np.ones(4, np.float32) for layer in range(6)}, MODEL, method="pca", pairs=7)
    for value in (wide, wide.tuned(3, -2.5, "generated"), Steering(wide, 4, (2, 3))):
        assert "\n" not in repr(value)
        assert len(repr(value)) < 160
    assert repr(wide.tuned(3, -2.5)) == (
        "SteeringVector(tiny, layers 0-5, pca of 7 pairs, tuned: layers 3, strength -2.5, phase all)"
    )


@pytest.mark.parametrize("factor", ["a", None, [2], A, 1j, RAMP])
def test_only_numbers_multiply(factor: Any) -> None:
    for act in (operator.mul, operator.truediv):
        with pytest.raises(TypeError):
            act(A, factor)
    with pytest.raises(TypeError):
        factor * A


@pytest.mark.parametrize("other", ["a", None, 1, RAMP])
def test_only_vectors_are_added(other: Any) -> None:
    for act in (operator.add, operator.sub):
        with pytest.raises(TypeError):
            act(A, other)
    with pytest.raises(TypeError):
        other + A


def test_a_tuning_says_how_and_operations_forget_it() -> None:
    tuned = A.tuned(3, 4, "generated")
    assert tuned.tuning == Tuning((3,), 4.0, "generated")
    assert tuned.digest == A.digest
    assert A.tuned().tuning == Tuning((1, 3), 1.0, "all")
    for changed in (tuned * 2, tuned / 2, -tuned, tuned + B, B + tuned, tuned - B, tuned.at(3), tuned.project_out(B)):
        assert changed.tuning is None
    with pytest.raises(VectorError, match="layer 5 asked"):
        A.tuned(5)
    with pytest.raises(VectorError, match="no layer asked"):
        A.tuned([])
    with pytest.raises(VectorError, match="finite"):
        A.tuned(3, float("inf"))
    with pytest.raises(VectorError, match="no phase 'prompt'"):
        A.tuned(3, 1, "prompt")  # type: ignore[arg-type]
    with pytest.raises(VectorError, match="without layers"):
        Tuning(())


def test_a_steering_of_a_tuned_vector_is_as_tuned_and_what_is_given_wins() -> None:
    tuned = A.tuned(3, 4, "generated")
    assert Steering.of(tuned) == Steering(A, 4, (3,), "generated")
    assert Steering.of(tuned, 0.0, [1], "all") == Steering(A, 0.0, (1,), "all")
    assert Steering.of(A) == Steering(A)
    assert Steering(tuned) == Steering(A)


@pytest.mark.parametrize("steer", ["dense.gguf", b"dense.gguf", 5, {"a": A}, ["dense.gguf"], [None]])
def test_what_cannot_steer_is_refused_in_one_line(steer: Any) -> None:
    with pytest.raises(VectorError, match="SteeringVector") as caught:
        steerings(steer)
    assert "\n" not in str(caught.value)


def test_every_form_of_steer_is_taken() -> None:
    assert steerings(None) == ()
    assert steerings([]) == ()
    assert steerings(A.tuned(3)) == (Steering(A, layers=(3,)),)
    assert steerings(Steering(A)) == (Steering(A),)
    assert steerings([A, Steering(B)]) == (Steering(A), Steering(B))
    request = Request((1,), steering=Steering(A))  # type: ignore[arg-type]
    assert request.steering == (Steering(A),)
    with pytest.raises(VectorError, match="a str cannot steer"):
        Steering("dense.gguf")  # type: ignore[arg-type]
    with pytest.raises(VectorError, match="layers are whole numbers; '3' is none"):
        Steering(A, layers="3")  # type: ignore[arg-type]
    assert Steering(A, layers=3).layers == (3,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "layers"),
    [("3", (3,)), ("1-5", (1, 2, 3, 4, 5)), ("1,2,7-9", (1, 2, 7, 8, 9)), (" 7 - 9, 1 ", (1, 7, 8, 9)), ("2,2", (2,))],
)
def test_parse_layers(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text) == layers
    assert parse_layers(spans(layers)) == layers


@pytest.mark.parametrize("text", ["", ",", "a", "1-", "-1", "5-1", "1..3", "1;2", "99999999999999", "1e3"])
def test_parse_layers_refuses(text: str) -> None:
    with pytest.raises(VectorError, match="cannot read layers"):
        parse_layers(text)


def test_the_value_needs_no_runtime() -> None:
    code = "import sys, edge_steer.core.vector; sys.exit(any(m in sys.modules for m in ('torch', 'llama_cpp', 'gguf')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_random_control_has_the_norms_and_the_tuning_and_nothing_else_of_a_vector() -> None:
    model = ModelIdentity("m", "qwen2", hidden_size=256, block_count=3)
    rng = np.random.default_rng(0)
    directions = {layer: rng.standard_normal(256).astype(np.float32) * layer for layer in (1, 2)}
    vector = SteeringVector(directions, model, "mean_difference").tuned([2], 0.5, "generated")
    first, again, other = (vector.random_like(seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.tuning == vector.tuning
    assert first.method == "random"
    assert first.norms == pytest.approx(vector.norms, rel=1e-6)
    for layer in (1, 2):
        for a, b in ((first, vector), (first, other)):
            assert abs(float(a.directions[layer] @ b.directions[layer])) < 0.3 * a.norms[layer] * b.norms[layer]
    assert "seed 1" in other.provenance[-1]
