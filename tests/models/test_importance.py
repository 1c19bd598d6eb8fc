"""importance.py and quantising by it: files as llama-imatrix writes them, read strictly; types that need one."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from gguf_bytes import F32, STRING, build, floats, key, tensor, text

from edge_steer.commands.main import main
from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.core.quants import NEED_IMPORTANCE, QUANTS
from edge_steer.core.vector import Array
from edge_steer.llama.quantizer import quantize_file
from edge_steer.models import importance
from edge_steer.models.quantize import quantize
from edge_steer.storage.gguf_header import read_header

KIND = key("general.type", STRING, text("imatrix"))
NAME = "blk.2.ffn_up.weight"


def file(path: Path, **changes: object) -> Path:
    """By hand: a dense tensor of 4 columns seen by 8 tokens, and two experts of 2 columns, one never chosen."""
    parts = {
        "keys": (KIND,),
        "tensors": (
            tensor("a.weight.in_sum2", (4, 1), offset=0),
            tensor("a.weight.counts", (1, 1), offset=32),
            tensor("b.weight.in_sum2", (2, 2), offset=64),
            tensor("b.weight.counts", (1, 2), offset=96),
        ),
        "data": floats(8, 16, 0, 4) + floats(8) + floats(3, 6, 0, 0) + floats(3, 0),
    }
    path.write_bytes(build(**{**parts, **changes}))  # type: ignore[arg-type]
    return path


def test_sums_become_means_and_experts_never_chosen_count_one(tmp_path: Path) -> None:
    found = importance.read(file(tmp_path / "i.gguf"))
    assert {name: values.tolist() for name, values in found.items()} == {
        "a.weight": [1, 2, 0, 0.5],
        "b.weight": [1, 2, 1, 1],
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keys": ()}, "no importance matrix"),
        ({"keys": (key("general.type", STRING, text("model")),)}, "no importance matrix"),
        ({"tensors": ()}, "holds no importance"),
        ({"tensors": (tensor("a.weight.in_sum2"),)}, "has no a.weight.counts"),
        ({"data": floats(1, 2, 3, 4)}, "is not 1 floats within the file"),
        ({"data": floats(1, -2, 3, 4) + bytes(96)}, "negative or not finite"),
        ({"data": floats(1, float("nan"), 3, 4) + bytes(96)}, "negative or not finite"),
        (
            {"tensors": (tensor("a.weight.in_sum2"), tensor("a.weight.counts", (3,), F32, 32))},
            "4 sums and 3 counts",
        ),
        (
            {"tensors": (tensor("a.weight.in_sum2", kind=1), tensor("a.weight.counts", (1,), F32, 32))},
            "is not 4 floats",
        ),
    ],
)
def test_what_is_no_whole_importance_matrix_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        importance.read(file(tmp_path / "i.gguf", **changes))


def test_the_older_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "i.dat").write_bytes(bytes(64))
    with pytest.raises(ModelError, match="--output-format gguf"):
        importance.read(tmp_path / "i.dat")
    with pytest.raises(EdgeSteerError, match="no such file"):
        importance.read(tmp_path / "absent.gguf")


def columns(model: Path) -> dict[str, int]:
    """Every weight of the blocks with the number of its columns."""
    tensors = read_header(model).tensors
    return {t.name: t.shape[0] for t in tensors if t.name.startswith("blk.") and len(t.shape) == 2}


def written(path: Path, values: dict[str, Array]) -> Path:
    """As llama-imatrix writes it, by the gguf package."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    for name, value in values.items():
        writer.add_tensor(f"{name}.in_sum2", (10 * value)[None].astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.full((1, 1), 10, np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path


def weight(path: Path, name: str) -> Array:
    (found,) = (t for t in gguf.GGUFReader(path).tensors if t.name == name)
    values: Array = gguf.quants.dequantize(found.data, found.tensor_type)
    return values


@pytest.mark.parametrize("quant", ["Q4_0", "Q3_K_M", "IQ4_XS"])
def test_columns_that_count_more_are_kept_better(bundled_f16: Path, tmp_path: Path, quant: str) -> None:
    counts = {name: np.ones(n, np.float32) for name, n in columns(bundled_f16).items()}
    for values in counts.values():
        values[::8] = 1000
    found = importance.read(written(tmp_path / "i.gguf", counts))
    quantize_file(bundled_f16, tmp_path / "without.gguf", quant, 1)
    quantize_file(bundled_f16, tmp_path / "with.gguf", quant, 1, found)
    exact = weight(bundled_f16, NAME)
    off = [((weight(tmp_path / f"{n}.gguf", NAME) - exact) ** 2)[:, ::8].mean() for n in ("without", "with")]
    assert off[1] < 0.8 * off[0]


def test_the_smallest_types_need_one(bundled_f16: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"IQ2_XS needs an importance matrix; make one with llama-imatrix"):
        quantize_file(bundled_f16, tmp_path / "q.gguf", "IQ2_XS", 1)
    counts = {name: np.ones(n, np.float32) for name, n in columns(bundled_f16).items()}
    path = written(tmp_path / "i.gguf", counts)
    arguments = ["quantize", str(bundled_f16), "iq2_xs", "--imatrix", str(path), "--threads", "1"]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "q.gguf")])
    assert done.exit_code == 0, done.output
    assert read_header(tmp_path / "q.gguf").metadata["general.file_type"] == 20
    assert (tmp_path / "q.gguf").stat().st_size < bundled_f16.stat().st_size / 4


def test_what_an_importance_matrix_made_is_cached_by_it(
    bundled_f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_STEER_CACHE", str(tmp_path / "cache"))
    ones = {name: np.ones(n, np.float32) for name, n in columns(bundled_f16).items()}
    uneven = {name: np.where(np.arange(n) % 8, 1, 1000).astype(np.float32) for name, n in columns(bundled_f16).items()}
    first, second = (
        quantize(bundled_f16, "Q3_K_M", imatrix=written(tmp_path / f"{i}.gguf", values), threads=1)
        for i, values in enumerate((ones, uneven))
    )
    assert quantize(bundled_f16, "Q3_K_M", imatrix=tmp_path / "0.gguf", threads=1) == first
    assert len({first, second, quantize(bundled_f16, "Q3_K_M", threads=1)}) == 3
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize("quant", QUANTS)
def test_no_other_type_needs_one(bundled_f16: Path, tmp_path: Path, quant: str) -> None:
    if quant in NEED_IMPORTANCE:
        with pytest.raises(ModelError, match=f"{quant} needs an importance matrix"):
            quantize_file(bundled_f16, tmp_path / "q.gguf", quant, 1)
        assert not list(tmp_path.iterdir())
    else:
        quantize_file(bundled_f16, tmp_path / "q.gguf", quant, 1)
        assert read_header(tmp_path / "q.gguf").metadata["general.file_type"] == QUANTS[quant]


def test_one_that_lacks_a_tensor_is_refused_in_llama_cpps_own_words(bundled_f16: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot quantise .* to IQ2_XS: .*[Mm]issing importance matrix"):
        quantize_file(bundled_f16, tmp_path / "q.gguf", "IQ2_XS", 1, {NAME: np.ones(256, np.float32)})
    assert not list(tmp_path.iterdir())


def test_one_of_another_model_is_refused(bundled_f16: Path, tmp_path: Path) -> None:
    ones = np.ones(256, np.float32)
    for wrong, words in (
        ({"blk.99.ffn_up.weight": ones}, "an unknown blk.99.ffn_up.weight"),
        ({NAME: ones[:64]}, f"64 values for {NAME}, which has 256 there"),
    ):
        with pytest.raises(ModelError, match=words):
            quantize_file(bundled_f16, tmp_path / "q.gguf", "Q4_0", 1, wrong)
    assert not list(tmp_path.iterdir())
