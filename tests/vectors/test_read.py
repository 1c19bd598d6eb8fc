"""Files of other tools, by their own writers."""

import ctypes
import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from gguf_bytes import STRING, U32, build, floats, key, tensor, text
from llama_cpp._ggml import libggml
from paths import DATA, ROOT

from edge_steer.commands.main import main
from edge_steer.core.architectures import GGUF_NAMES, gguf_name, model_type
from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError, VectorError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import ModelIdentity, SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.vectors import gguf_writer, native, read

PEERS = Path(__file__).parent / "golden" / "peers"
PUBLISHED = DATA / "densesteer_vectors"
ROWS = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.25, 0.5, 0.75, 1.0], [7.0, 8.0, 9.0, 10.0]])
COUNT = "controlvector.layer_count"
I32 = 5


def values(path: Path, **given: Any) -> dict[int, list[float]]:
    found = read.read(path, **given).vector
    return {layer: direction.tolist() for layer, direction in found.directions.items()}


def control_vector(path: Path, layers: dict[int, np.ndarray], *keys: tuple[str, str, Any]) -> Path:
    """As repeng and its kin write one; keys: (kind, name, value)."""
    writer = gguf.GGUFWriter(path, "controlvector")
    for kind, name, value in keys:
        getattr(writer, f"add_{kind}")(f"controlvector.{name}", value)
    for layer, direction in layers.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_files_of_every_float(tmp_path: Path, dtype: torch.dtype, protocol: int) -> None:
    rows = ROWS.to(dtype)
    expected = {layer: row.tolist() for layer, row in enumerate(rows.float())}
    column = torch.stack([rows[0], rows[0]], dim=1)[:, 1]  # not contiguous, with an offset
    held: dict[str, Any] = {
        "by number": {0: rows[0], 1: rows[1], 2: rows[2].clone()},
        "by name": OrderedDict((f"model.layers.{layer}", row) for layer, row in enumerate(rows)),
        "rows": rows,
        "a parameter": {0: torch.nn.Parameter(rows[0]), 1: rows[1][None], 2: rows[2]},
        "strided": {0: column, 1: rows[1], 2: rows[2]},
    }
    for name, value in held.items():
        torch.save(value, tmp_path / f"{name}.pt", pickle_protocol=protocol)
        assert values(tmp_path / f"{name}.pt", convention="block") == expected, name


def test_npz_and_safetensors_of_other_tools(tmp_path: Path) -> None:
    expected = {layer: row.tolist() for layer, row in enumerate(ROWS)}
    by_name = {f"layer_{layer}": row.numpy() for layer, row in enumerate(ROWS)}
    np.savez(tmp_path / "a.npz", **by_name)
    np.savez_compressed(tmp_path / "b.npz", vectors=ROWS.double().numpy())
    np.savez(tmp_path / "c.npz", vectors=np.asfortranarray(ROWS.numpy()))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        tensors = {name: torch.tensor(value).to(dtype) for name, value in by_name.items()}
        safetensors.torch.save_file(tensors, tmp_path / f"{dtype}.safetensors")
    assert len(list(tmp_path.iterdir())) == 6
    for path in tmp_path.iterdir():
        assert values(path, convention="block") == expected, path.name


def test_the_convention_is_asked_for_where_the_file_does_not_tell(tmp_path: Path) -> None:
    torch.save(ROWS, tmp_path / "rows.pt")
    with pytest.raises(
        VectorError, match=r"does not say how it counts.*import it with the convention 'block' .* or 'block\+1'"
    ):
        read.load(tmp_path / "rows.pt")
    found = read.read(tmp_path / "rows.pt", convention="block+1", model="m", architecture="mistral")
    assert (found.left_out, found.vector.layers) == (True, (0, 1))
    assert found.vector.directions[0].tolist() == ROWS[1].tolist()
    assert found.vector.model == ModelIdentity("m", "llama", 4, 0)
    assert "convention block+1" in found.vector.provenance[0]
    torch.save(ROWS[:1], tmp_path / "first.pt")
    with pytest.raises(VectorError, match="only index 0, the embeddings' output"):
        read.read(tmp_path / "first.pt", convention="block+1")


A, B, C = (row.numpy() for row in ROWS)
HINT = ("string", "model_hint", "mistral")
MARKED: dict[str, tuple[dict[int, np.ndarray], list[tuple[str, str, Any]], str | None]] = {
    "repeng": ({3: C, 2: B, 1: A}, [HINT, ("uint32", "layer_count", 3)], "block"),
    "EasySteer": (
        {0: A.astype(np.float64), 1: B.astype(np.float16), 2: C},
        [HINT, ("string", "method", "diffmean"), ("uint32", "layer_count", 3), ("float32", "variance.1", 0.5)],
        "block",
    ),
    "direction.0": ({0: A, 1: B}, [HINT, ("uint32", "layer_count", 2)], "block"),
    "llama-cvector-generator": ({1: A, 2: B}, [HINT, ("int32", "layer_count", 2)], "block+1"),
    "jukofyork": ({1: A, 2: B}, [HINT, ("uint32", "layer_count", 4)], None),
    "rising": ({1: A, 2: B}, [HINT, ("uint32", "layer_count", 2)], None),
    "one layer": ({2: B}, [HINT, ("uint32", "layer_count", 1)], None),
    "no keys": ({1: A, 2: B}, [], None),
    "other keys": ({2: B, 1: A}, [HINT, ("uint32", "layer_count", 2), ("string", "note", "x")], None),
    "a signed count of one layer": ({8: A}, [HINT, ("int32", "layer_count", 1)], None),
    "a falling file with another count": ({2: B, 1: A}, [HINT, ("uint32", "layer_count", 7)], None),
}


@pytest.mark.parametrize("name", MARKED)
def test_a_tool_is_known_by_its_marks_or_not_at_all(tmp_path: Path, name: str) -> None:
    layers, keys, convention = MARKED[name]
    path = control_vector(tmp_path / "v.gguf", layers, *keys)
    if convention is None:
        with pytest.raises(VectorError, match="does not say how it counts layers"):
            read.load(path)
        convention = "block"
        found = read.read(path, convention="block")
    else:
        found = read.read(path)
    assert found.convention == convention
    assert found.vector.model.architecture == ("llama" if keys else None)
    shift = convention == "block+1"
    assert found.vector.layers == tuple(sorted(layer - shift for layer in layers))
    for layer, direction in layers.items():
        assert found.vector.directions[layer - shift].tolist() == direction.tolist()
    assert found.vector.method == ("diffmean" if name == "EasySteer" else "unknown")


def test_a_count_that_is_no_number_is_no_mark(tmp_path: Path) -> None:
    control = key("general.architecture", STRING, text("controlvector"))
    hint = key("controlvector.model_hint", STRING, text("qwen2"))
    for kind, value in ((STRING, text("2")), (I32, b"\xff\xff\xff\xff"), (U32, b"\x00" * 4)):
        data = build((control, hint, key(COUNT, kind, value)), (tensor("direction.1"),), floats(1, 2, 3, 4))
        (tmp_path / "v.gguf").write_bytes(data)
        with pytest.raises(VectorError, match="does not say"):
            read.load(tmp_path / "v.gguf")


def test_a_file_of_ours_takes_no_other_word(tmp_path: Path) -> None:
    native.save(SteeringVector({1: A}, ModelIdentity("m", "qwen2", 4, 2)), tmp_path / "v.safetensors")
    assert read.read(tmp_path / "v.safetensors", convention="block").origin == "edge-steer"
    for given in ({"convention": "block+1"}, {"model": "n"}, {"architecture": "llama"}):
        with pytest.raises(VectorError, match="is of edge-steer and says itself"):
            read.read(tmp_path / "v.safetensors", **given)  # type: ignore[arg-type]


def test_a_vector_by_a_hugging_face_name_fits_the_gguf_of_that_model(tmp_path: Path) -> None:
    path = control_vector(tmp_path / "v.gguf", {2: B, 1: A}, HINT, ("uint32", "layer_count", 2))
    vector = read.load(path)
    vector.check_fits(ModelIdentity("m", "llama", 4, 3))
    with pytest.raises(VectorError, match="use one extracted from that model"):
        vector.check_fits(ModelIdentity("m", "qwen2", 4, 3))


def test_names_of_architectures_go_both_ways() -> None:
    assert gguf_name("mistral") == gguf_name("llama") == "llama"
    assert model_type("llama") == "llama"
    assert model_type("qwen2vl") == "qwen2vl"
    assert model_type("phi2") == "phi"
    assert all(gguf_name(model_type(name)) == name for name in GGUF_NAMES.values())


def test_torch_is_not_needed_to_read_its_files() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from edge_steer.vectors import read\n"
        f"print(read.load(Path({str(PEERS / 'steering_vectors.pt')!r})).layers)\n"
        "assert not {'llama_cpp', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(0, 1, 2, 3)\n"


def test_an_old_torch_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    torch.save({0: ROWS[0]}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(VectorError, match=r"bare pickle; only the zip files of torch 1\.6"):
        read.load(tmp_path / "old.pt")


def test_a_model_or_anything_else_is_no_vector(tmp_path: Path, bundled_f16: Path) -> None:
    with pytest.raises(VectorError, match="architecture 'qwen2', not 'controlvector'"):
        read.load(bundled_f16)
    (tmp_path / "text").write_text("a text, and no tensors at all")
    with pytest.raises(EdgeSteerError, match="not a steering vector"):
        read.load(tmp_path / "text")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="DenseSteer's published vectors are not here")
@pytest.mark.parametrize(
    ("model", "blocks", "width"),
    [("Qwen_Qwen2.5-1.5B", 28, 1536), ("Qwen_Qwen2.5-3B", 36, 2048), ("meta-llama_Llama-3.2-1B", 16, 2048),
     ("meta-llama_Llama-3.2-3B", 28, 3072)],
)  # fmt: skip
def test_published_vectors_become_control_vectors(tmp_path: Path, model: str, blocks: int, width: int) -> None:
    path = PUBLISHED / f"dense-rewritten__{model}-Instruct.pt"
    vector = read.load(path)
    assert (vector.layers, vector.model.hidden_size) == (tuple(range(blocks)), width)
    theirs = torch.load(path, weights_only=False, pickle_module=_Lenient)
    for layer, direction in vector.directions.items():
        assert np.array_equal(direction, theirs.layer_activations[layer].float().numpy())
    norms = list(vector.norms.values())
    assert all(0.01 < norm < 20 for norm in norms)
    assert norms[-1] > 5 * norms[0]  # the residual stream grows with depth, and differences with it
    written = gguf_writer.write(vector, tmp_path / "v.gguf")
    assert (written.left_out, written.vector.layers) == ((0,), tuple(range(1, blocks)))
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert {item.name for item in reader.tensors} == {f"direction.{layer}" for layer in range(1, blocks)}
    assert tensors_of_llama_cpp(tmp_path / "v.gguf") == blocks - 1
    result = CliRunner().invoke(main, ["info", str(path), "--json"])
    assert json.loads(result.stdout)["norms"]["0"] == pytest.approx(norms[0])


class _Parameters(ctypes.Structure):
    """struct gguf_init_params"""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p)))


def tensors_of_llama_cpp(path: Path) -> int:
    """How many tensors llama.cpp's own reader, which its control vector loader stands on, finds in the file."""
    # struct gguf_context * gguf_init_from_file(const char * fname, struct gguf_init_params params);
    libggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, _Parameters]
    libggml.gguf_init_from_file.restype = ctypes.c_void_p
    libggml.gguf_get_n_tensors.argtypes, libggml.gguf_get_n_tensors.restype = [ctypes.c_void_p], ctypes.c_int64
    libggml.gguf_free.argtypes = [ctypes.c_void_p]
    handle = libggml.gguf_init_from_file(str(path).encode(), _Parameters(True, None))
    assert handle
    try:
        return int(libggml.gguf_get_n_tensors(handle))
    finally:
        libggml.gguf_free(handle)


class _Lenient:
    """The standard pickle module, with an empty class in place of steering_vectors' own."""

    from pickle import Unpickler as _Base

    class Unpickler(_Base):
        def find_class(self, module: str, name: str) -> Any:
            if module.startswith("steering_vectors"):
                return type(name, (), {})
            return super().find_class(module, name)


def test_layer_0_of_another_tool_steers(bundled_f16: Path, tmp_path: Path) -> None:
    """A file of EasySteer, direction.0 included, is used as it is; and refused for another model."""
    with Engine.load(bundled_f16, EngineOptions(threads=1, context=64)) as engine:
        width = engine.model.hidden_size
        one = np.linspace(-50, 50, width, dtype=np.float32)
        keys = [("string", "model_hint", "qwen2"), ("string", "method", "pca")]
        path = control_vector(tmp_path / "v.gguf", {0: one, 1: one}, *keys)
        tokens = engine.encode("3 + 4 =")
        found = engine.logits(tokens, 1, (Steering(read.load(path)),))
        layer_1 = engine.logits(tokens, 1, (Steering(read.load(path), layers=(1,)),))
        assert np.abs(found - layer_1).max() > 0.1
        other = control_vector(tmp_path / "w.gguf", {0: one[:-1]}, *keys)
        with pytest.raises(VectorError, match="use one extracted from that model"):
            engine.logits(tokens, 1, (Steering(read.load(other)),))


def test_the_command_line_says_whose_vector_steers(bundled_f16: Path, tmp_path: Path) -> None:
    with Engine.load(bundled_f16, EngineOptions(threads=1, context=64)) as engine:
        one = np.ones(engine.model.hidden_size, np.float32)
    keys = ("string", "model_hint", "qwen2"), ("int32", "layer_count", 2)
    path = control_vector(tmp_path / "v.gguf", {1: one, 2: one}, *keys)
    words = ["run", str(bundled_f16), "1 + 1", "-n", "1", "--threads", "1", "--vector", str(path)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith(f"steering by {path} from llama-cvector-generator, by its signed layer_count")
    assert "llama-cvector-generator" not in result.stdout


def run(*words: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == status, result.output
    return result.output


def test_import_export_and_arithmetic_from_the_command_line(tmp_path: Path) -> None:
    rows, a, b, out = (tmp_path / name for name in ("rows.pt", "a.safetensors", "b.safetensors", "out.safetensors"))
    torch.save(ROWS, rows)
    assert "import it with the convention" in run("import", rows, "-o", a, status=1)
    assert not a.exists()
    said = run("import", rows, "-o", a, "--convention", "block", "--model-name", "m", "--architecture", "phi")
    assert "layers counted by block" in said
    said = run("import", rows, "-o", b, "--convention", "block+1", "--architecture", "phi2", "--layers", "1")
    assert "index 0 left out" in said
    assert values(b) == {1: C.tolist()}

    run("vector", "add", a, b, "-o", out)
    assert values(out) == {0: A.tolist(), 1: (B + C).tolist(), 2: C.tolist()}
    run("vector", "sub", a, b, "-o", out, "--layers", "1")
    assert values(out) == {1: (B - C).tolist()}
    assert read.load(out).provenance[-1] == "layers 1 of 0-2"
    run("vector", "scale", a, "-0.5", "-o", out)
    assert values(out)[2] == (C * -0.5).tolist()
    run("vector", "project", a, b, "-o", out)
    projected = read.load(out)
    assert abs(float(projected.directions[1] @ C)) < 1e-4
    digests = [read.load(path).digest[:12] for path in (a, b)]
    assert projected.provenance[-1] == f"{digests[0]} without {digests[1]}"
    assert projected.provenance[0] == read.load(a).provenance[0]

    assert "at least two" in run("vector", "add", a, "-o", out, status=2)
    assert "layer 0 left out" in run("vector", "scale", a, "2", "-o", tmp_path / "v.gguf")
    assert values(tmp_path / "v.gguf") == {1: (B * 2).tolist(), 2: (C * 2).tolist()}
    assert "name it so" in run("vector", "scale", a, "2", "-o", tmp_path / "v.pt", status=1)
    other = tmp_path / "other.safetensors"
    native.save(SteeringVector({1: A}, ModelIdentity("x", "llama", 4, 3)), other)
    assert "use one extracted from that model" in run("vector", "add", a, other, "-o", out, status=1)

    said = run("export", a, "-o", tmp_path / "v.gguf")
    assert "layer 0 left out" in said
    assert "no layer 0" in run("export", a, "-o", tmp_path / "v.gguf", "--layers", "0-2", status=1)
    said = run("export", a, "-o", tmp_path / "v.gguf", "--layers", "0-2", "--format", "repeng")
    assert "skip such a file" in said
    assert read.load(tmp_path / "v.gguf").digest == read.load(a).digest
    fields = gguf.GGUFReader(tmp_path / "v.gguf").fields
    assert fields["controlvector.model_hint"].contents() == "phi"
    run("export", a, "-o", tmp_path / "v.gguf", "--format", "repeng", "--model-hint", "phi3")
    assert gguf.GGUFReader(tmp_path / "v.gguf").fields["controlvector.model_hint"].contents() == "phi3"


def test_damaged_files_are_read_or_refused_and_nothing_else() -> None:
    script = ROOT / "benchmarks" / "fuzz.py"
    command = [sys.executable, str(script), "--count", "2000", "--json", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, row in json.loads(done.stdout).items():
        assert row["read"] > 50, kind
        assert row["refused"] > 1000, kind
