"""Vectors by name, and steering in words."""

from pathlib import Path

import numpy as np
import pytest
from paths import DENSE

from edge_steer.core.errors import VectorError
from edge_steer.core.vector import SteeringVector
from edge_steer.vectors.gguf_writer import write
from edge_steer.vectors.named import MOST_TERMS, NamedFile, NamedVectors, Term, parse_words
from edge_steer.vectors.read import load


@pytest.fixture
def vectors(bundled_vector_gguf: Path) -> NamedVectors:
    dense = load(DENSE)
    served = NamedVectors(dense.model)
    served.load("dense", DENSE)
    served.load("other", bundled_vector_gguf, 0.5)
    return served


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("dense.gguf", NamedFile("dense", Path("dense.gguf"))),
        ("a/dense.gguf:0.5", NamedFile("dense", Path("a/dense.gguf"), 0.5)),
        ("formal=a/f.gguf:-1", NamedFile("formal", Path("a/f.gguf"), -1.0)),
        ("formal=c:/f.gguf", NamedFile("formal", Path("c:/f.gguf"))),
    ],
)
def test_a_file_with_its_name_and_strength(text: str, file: NamedFile) -> None:
    assert NamedFile.parse(text) == file


def test_named_files_steer_together_less_those_of_strength_0(bundled_vector_gguf: Path) -> None:
    files = NamedFile("dense", DENSE), NamedFile("off", DENSE, 0.0), NamedFile("other", bundled_vector_gguf, 0.5)
    named = NamedVectors.of(files, load(DENSE).model)
    assert [(one.name, one.steering.strength) for one in named.default] == [
        ("dense", named.get("dense").as_tuned.strength),
        ("other", 0.5),
    ]
    assert named.get("off").as_tuned == named.get("dense").as_tuned


@pytest.mark.parametrize(
    ("words", "terms"),
    [
        ("", ()),
        ("  ", ()),
        ("4 dense", (Term("dense", 4.0),)),
        ("4*dense", (Term("dense", 4.0),)),
        ("4dense", (Term("dense", 4.0),)),
        ("-.5 dense", (Term("dense", -0.5),)),
        ("dense", (Term("dense"),)),
        ("- dense", (Term("dense", sign=-1),)),
        ("4 dense - 0.5 formal", (Term("dense", 4.0), Term("formal", -0.5))),
        ("4 dense+formal", (Term("dense", 4.0), Term("formal"))),
        ("1e-1 a_b-c.d", (Term("a_b-c.d", 0.1),)),
    ],
)
def test_words_are_terms(words: str, terms: tuple[Term, ...]) -> None:
    assert parse_words(words) == terms


@pytest.mark.parametrize(
    "words",
    ["4", "4 4 dense", "dense formal", "4 /etc/passwd", "nan dense", "+ + a", "inf*", "4 dense -", "a\0b", "é"],
)
def test_other_words_are_refused(words: str) -> None:
    with pytest.raises(VectorError, match="cannot read the steering"):
        parse_words(words)


def test_too_many_terms_are_refused_in_words_and_as_a_list(vectors: NamedVectors) -> None:
    with pytest.raises(VectorError):
        parse_words("+ dense" * (MOST_TERMS + 1))
    with pytest.raises(VectorError, match="at most"):
        vectors.apply([Term("dense")] * (MOST_TERMS + 1))


def test_a_name_alone_is_as_tuned_or_as_the_server_says(vectors: NamedVectors) -> None:
    tuning = load(DENSE).tuning
    assert tuning
    [dense] = vectors.apply([Term("dense")])
    assert (dense.steering.strength, dense.steering.layers) == (tuning.strength, tuning.layers)
    [other] = vectors.apply([Term("other")])
    assert other.steering.strength == 0.5
    [less] = vectors.apply([Term("other", sign=-1)])
    assert less.steering.strength == -0.5


def test_what_is_said_wins_over_the_tuning(vectors: NamedVectors) -> None:
    [one] = vectors.apply([Term("other", 2.0, (3, 4), "generated")])
    assert one.json() == {
        "name": "other",
        "scale": 2.0,
        "layers": [3, 4],
        "phase": "generated",
        "sha256": one.steering.vector.digest,
    }


def test_strength_0_is_no_steering(vectors: NamedVectors) -> None:
    assert vectors.apply([Term("dense", 0.0)]) == ()


def test_an_unknown_name_names_those_there_are(vectors: NamedVectors) -> None:
    with pytest.raises(VectorError, match=r"'dance'.*dense, other"):
        vectors.apply([Term("dance")])


@pytest.mark.parametrize("term", [Term("dense", float("nan")), Term("dense", 1.0, (99,)), Term("dense", 1.0, ())])
def test_terms_that_fit_no_model_are_refused(vectors: NamedVectors, term: Term) -> None:
    with pytest.raises(VectorError):
        vectors.apply([term])


def test_mixed_phases_are_refused(vectors: NamedVectors) -> None:
    with pytest.raises(VectorError, match="phase"):
        vectors.apply([Term("dense", 1.0, None, "all"), Term("other", 1.0, None, "generated")])


@pytest.mark.parametrize("name", ["", "../x", "a b", "4x", "x" * 10 + "\n"])
def test_names_that_words_could_not_say_are_refused(vectors: NamedVectors, name: str) -> None:
    with pytest.raises(VectorError, match="no name"):
        vectors.load(name, DENSE)


def test_a_name_is_taken_once_and_free_again_after_unloading(vectors: NamedVectors) -> None:
    vectors.default = vectors.apply([Term("dense"), Term("other")])
    vectors.add_preset("strong", "2 dense")
    with pytest.raises(VectorError, match="already"):
        vectors.load("dense", DENSE)
    vectors.unload("dense")
    assert [one.name for one in vectors.default] == ["other"]
    assert vectors.presets == {}
    vectors.load("dense", DENSE)


def test_a_vector_of_another_model_is_refused(vectors: NamedVectors, tmp_path: Path) -> None:
    model = vectors.vectors[0].vector.model
    wide = type(model)("wide", model.architecture, 512, model.block_count)
    path = write(SteeringVector({2: np.ones(512, dtype=np.float32)}, wide), tmp_path / "wide.gguf").path
    with pytest.raises(VectorError, match="not of"):
        vectors.load("wide", path)
    assert "wide" not in [served.name for served in vectors.vectors]


def test_a_vector_in_memory_takes_a_name_too(vectors: NamedVectors) -> None:
    dense = load(DENSE)
    vectors.add("mine", dense, 0.7)
    assert vectors.get("mine").as_tuned.strength == 0.7
    assert vectors.default == ()
    with pytest.raises(VectorError, match="already"):
        vectors.add("mine", dense)
