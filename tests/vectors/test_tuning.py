"""How a vector is meant to be used: in files of both kinds, in recipes, and as a Steering."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner, Result
from heard import Heard
from paths import ROOT

from edge_steer.commands.main import main
from edge_steer.core.errors import EdgeSteerError, VectorError
from edge_steer.core.steering import Steering
from edge_steer.core.vector import ModelIdentity, SteeringVector, Tuning
from edge_steer.vectors import gguf_writer, native, read
from edge_steer.vectors.steer import split_strength, steering_of_file
from edge_steer.vectors.write import save

MODEL = ModelIdentity("tiny", "qwen2", hidden_size=4, block_count=5)
PLAIN = SteeringVector({layer: np.full(4, layer + 1, np.float32) for layer in range(5)}, MODEL)
TUNED = PLAIN.at([1, 2, 3]).tuned([1, 3], 0.75, "generated")
SUFFIXES = (".safetensors", ".gguf")


def edge_steer(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_keeps_the_tuning_and_the_digest_leaves_it_out(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"v{suffix}")
    assert save(TUNED, path) == Path(path)
    loaded = read.load(path)
    assert loaded.tuning == Tuning((1, 3), 0.75, "generated")
    assert loaded.digest == PLAIN.at([1, 2, 3]).digest
    save(replace(TUNED, tuning=None), path)
    assert read.load(path).tuning is None


def test_a_file_without_a_tuning_has_no_key_of_it(tmp_path: Path) -> None:
    native.save(PLAIN, tmp_path / "v.safetensors")
    gguf_writer.write(PLAIN, tmp_path / "v.gguf")
    assert all(b"tuning" not in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_baked_strength_divides_the_tuned_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    save(TUNED, path, strength=0.75)
    loaded = read.load(path)
    assert loaded.tuning == Tuning((1, 3), 1.0, "generated")
    assert np.array_equal(loaded.directions[3], PLAIN.directions[3] * np.float32(0.75))
    save(TUNED, path, strength=-3)
    before, after = Steering.of(TUNED), Steering.of(read.load(path))
    assert all(np.allclose(after.offsets()[layer], before.offsets()[layer]) for layer in (1, 3))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_fewer_layers_leave_fewer_tuned_ones_and_never_none(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    save(TUNED, path, layers=[2, 3])
    assert read.load(path).tuning == Tuning((3,), 0.75, "generated")
    save(TUNED, path, layers=1)
    assert read.load(path).layers == (1,)
    path.unlink()
    with pytest.raises(VectorError, match="tuned for layers 1, 3, and layers 2 would be left") as caught:
        save(TUNED, path, layers=2)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for name in ("v.pt", "v", "v.safetensors.txt"):
        with pytest.raises(VectorError, match=r"written as \.safetensors or \.gguf"):
            save(PLAIN, tmp_path / name)
    for suffix in SUFFIXES:
        for strength in (0.0, float("nan"), float("inf")):
            with pytest.raises(VectorError, match="strength is"):
                save(PLAIN, tmp_path / f"v{suffix}", strength=strength)
        with pytest.raises(VectorError, match="layer 7 asked"):
            save(PLAIN, tmp_path / f"v{suffix}", layers=7)
    assert not list(tmp_path.iterdir())


def test_layer_0_that_a_gguf_cannot_hold_is_said(tmp_path: Path) -> None:
    heard = Heard()
    save(PLAIN, tmp_path / "v.safetensors", progress=heard)
    assert not heard.notes
    save(PLAIN, tmp_path / "v.gguf", progress=heard)
    assert heard.notes == ["layer 0 left out: llama.cpp's control vectors have none"]


FIELDS: dict[str, tuple[dict[str, object], str]] = {
    "a layer the file has not": ({"layers": "1-4"}, "layer 4 asked"),
    "a huge range": ({"layers": "1-99999"}, "layer 4 asked"),
    "huge ranges again and again": ({"layers": ", ".join(["0-99999"] * 900)}, "cannot read its layers"),
    "a long text": ({"layers": ", ".join(map(str, range(5000)))}, "cannot read its layers"),
    "no layers": ({"layers": ""}, "cannot read its layers"),
    "layers that fall": ({"layers": "3, 1"}, "cannot read its layers"),
    "a leading zero": ({"layers": "01"}, "cannot read its layers"),
    "a list": ({"layers": [1]}, "cannot read its layers"),
    "digits of another script": ({"layers": "\u0661"}, "cannot read its layers"),
    "strength as text": ({"strength": "1"}, "tuned strength is '1'"),
    "strength true": ({"strength": True}, "tuned strength is 'True'"),
    "strength NaN": ({"strength": float("nan")}, "strength is nan"),
    "strength Inf": ({"strength": float("-inf")}, "tuned strength is '-inf'"),
    "strength past float64": ({"strength": 10**400}, "tuned strength is '1000"),
    "another phase": ({"phase": "prompt"}, "tuned phase is 'prompt'; allowed are all, generated"),
    "a phase that is no text": ({"phase": {}}, "tuned phase is"),
    "another field": ({"more": 1}, "needs layers, strength, phase, and nothing else"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_hostile_tuning_in_safetensors_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    changes, words = FIELDS[name]
    header = {**TUNED.header(), "tuning": {"layers": "1, 3", "strength": 0.75, "phase": "generated", **changes}}
    with pytest.raises(VectorError, match=words) as caught:
        read.load(stored(tmp_path, header))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("tuning", [None, [], "1-3", {"layers": "1"}])
def test_a_tuning_that_is_no_table_or_lacks_a_field_is_refused(tmp_path: Path, tuning: object) -> None:
    with pytest.raises(VectorError, match=r"tuning") as caught:
        read.load(stored(tmp_path, {**TUNED.header(), "tuning": tuning}))
    assert "\n" not in str(caught.value)


def stored(folder: Path, header: dict[str, object]) -> Path:
    path = folder / "v.safetensors"
    tensors = {f"direction.{layer}": np.array(direction) for layer, direction in TUNED.directions.items()}
    safetensors.numpy.save_file(tensors, path, {"edge_steer": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("good", "hostile", "words"),
    [
        (b"1, 3", b"1-99", "layer 4 asked"),
        (b"1, 3", b"3, 1", "cannot read its layers"),
        (b"1, 3", b"\xff\xff\xff\xff", "not UTF-8"),
        (struct.pack("<d", 0.75), struct.pack("<d", float("nan")), "strength is nan"),
        (struct.pack("<d", 0.75), struct.pack("<d", 1.7e308), "must be a finite number"),
        (b"generated", b"generator", "tuned phase is 'generator'"),
        (b"edge_steer.tuning.phase", b"edge_steer.tuning.phaze", "nothing else"),
        (b"edge_steer.tuning.phase", b"edge_steer.tuninh.phase", "nothing else"),
    ],
)
def test_a_hostile_tuning_in_a_gguf_is_refused_in_one_line(
    tmp_path: Path, good: bytes, hostile: bytes, words: str
) -> None:
    path = tmp_path / "v.gguf"
    gguf_writer.write(TUNED, path)
    content = path.read_bytes()
    assert content.count(good) == 1
    path.write_bytes(content.replace(good, hostile))
    with pytest.raises(VectorError, match=words) as caught:
        read.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_is_used_as_it_says_and_what_is_said_wins(tmp_path: Path) -> None:
    path = save(TUNED, tmp_path / "v.gguf")
    heard = Heard()
    assert steering_of_file(path, progress=heard) == Steering(TUNED, 0.75, (1, 3), "generated")
    said = f"steering by {path}: layers 1, 3, strength 0.75, phase generated, digest {TUNED.digest[:12]}"
    assert heard.notes == [said]
    assert steering_of_file(str(path), 2, 2, "all") == Steering(TUNED, 2, (2,), "all")
    assert steering_of_file(f"{path}:-1.5", 2) == Steering(TUNED, -1.5, (1, 3), "generated")
    assert steering_of_file(save(PLAIN, tmp_path / "p.safetensors")) == Steering(PLAIN, 1.0, None, "all")
    with pytest.raises(VectorError, match="layer 4 asked"):
        steering_of_file(path, layers=[1, 4])


@pytest.mark.parametrize(
    ("source", "path", "strength"),
    [
        ("dense.gguf", "dense.gguf", None),
        ("dense.gguf:4", "dense.gguf", 4),
        ("a/b:-0.5", "a/b", -0.5),
        ("C:\\dense.gguf", "C:\\dense.gguf", None),
        ("dense.gguf:", "dense.gguf:", None),
        (":4", ":4", None),
    ],
)
def test_split_strength(source: str, path: str, strength: float | None) -> None:
    assert split_strength(source) == (Path(path), strength)


RECIPE = 'model = "tiny"\nvector = "v.gguf"\nlayer = 3\nstrength = -2\nphase = "generated"\nchosen = "by hand"\n'


def test_an_export_folder_is_a_vector_tuned_as_its_recipe_says(tmp_path: Path) -> None:
    gguf_writer.write(PLAIN, tmp_path / "v.gguf")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    for source in (tmp_path, str(tmp_path / "recipe.toml")):
        assert read.load(source).tuning == Tuning((3,), -2.0, "generated")
    assert steering_of_file(f"{tmp_path}:4") == Steering(read.load(tmp_path), 4.0, (3,), "generated")
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("layer = 3", 'layers = "1,3"'))
    assert read.load(tmp_path).tuning == Tuning((1, 3), -2.0, "generated")
    bundled = read.load(ROOT / "export/abacus/dense")
    assert bundled.tuning == Tuning((5,), 0.325, "all")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (None, r"no such file.*a vector file, or a folder with a recipe\.toml"),
        ('source = "a/b"\n', "names no vector"),
        (RECIPE.replace("layer = 3\n", ""), "not chosen yet"),
        (RECIPE.replace("layer = 3", 'layer = "3"'), "not a whole number"),
        (RECIPE.replace("layer = 3", "layer = 9"), "layer 9 asked"),
        (RECIPE.replace("layer = 3", 'layers = "all"'), "cannot read layers 'all'"),
        (RECIPE.replace("layer = 3", 'layer = 3\nlayers = "3"'), "layers: says again what layer says"),
        (RECIPE.replace("-2", "nan"), "not a finite number"),
        (RECIPE.replace("generated", "prompt"), "phase: allowed are all, generated"),
        (RECIPE.replace("v.gguf", "recipe.toml"), "not the name of a file"),
        (RECIPE.replace("v.gguf", "../v.gguf"), "not the name of a file"),
        (RECIPE.replace("v.gguf", "."), "not the name of a file"),
        (RECIPE.replace("v.gguf", "w.gguf"), r"no such file: .*w\.gguf"),
        ("vector", "is not TOML"),
    ],
)
def test_a_folder_that_names_no_vector_is_refused(tmp_path: Path, recipe: str | None, words: str) -> None:
    gguf_writer.write(PLAIN, tmp_path / "v.gguf")
    if recipe is not None:
        (tmp_path / "recipe.toml").write_text(recipe)
    with pytest.raises(EdgeSteerError, match=words) as caught:
        read.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_export_carries_the_tuning_and_says_what_llama_cpp_cannot(tmp_path: Path) -> None:
    source, out = save(TUNED, tmp_path / "v.safetensors"), tmp_path / "v.gguf"
    result = edge_steer("export", source, "-o", out, "--strength", "0.75")
    assert "to be used at layers 1, 3, strength 1, phase generated" in result.stdout
    [line] = result.stderr.splitlines()
    assert "llama.cpp's own tools have none: they steer every token" in line
    result = edge_steer("export", source, "-o", out, "--phase", "all")
    assert read.load(out).tuning == Tuning((1, 3), 0.75, "all")
    assert not result.stderr
    plain = save(PLAIN, tmp_path / "p.safetensors")
    edge_steer("export", plain, "-o", out, "--layers", "2", "--strength", "4", "--phase", "generated")
    assert read.load(out).tuning == Tuning((2,), 1.0, "generated")
    result = edge_steer("export", source, "-o", tmp_path / "none.gguf", "--layers", "2", status=1)
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "none.gguf").exists()


def test_a_vector_is_tuned_by_hand_and_arithmetic_forgets_it(tmp_path: Path) -> None:
    source, out = save(PLAIN, tmp_path / "v.safetensors"), tmp_path / "t.safetensors"
    edge_steer("vector", "tune", source, "--layers", "2-3", "--strength", "-1.5", "-o", out)
    assert read.load(out).tuning == Tuning((2, 3), -1.5, "all")
    assert read.load(out).digest == PLAIN.digest
    edge_steer("vector", "scale", out, "2", "-o", out)
    assert read.load(out).tuning is None
