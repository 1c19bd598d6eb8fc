"""A reading as JSON, text and pages: what a token or a name holds stays text, and nothing is loaded from elsewhere."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from paths import ABACUS

from edge_steer.core.backend import EngineOptions
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.lens.in_context import read_in_context
from edge_steer.lens.page import context_page, reading_page
from edge_steer.lens.reading import Reading, read_vector
from edge_steer.lens.scores import NullChoice
from edge_steer.lens.text import write_texts
from edge_steer.lens.topics import LayerTopics
from edge_steer.lens.unembedding import Unembedding, read_unembedding
from edge_steer.lens.vocabulary import Vocabulary, quoted
from edge_steer.llama.engine import Engine

HOSTILE = '<script src="https://evil.example/x.js"></script>\u202e\x1b[31m'
FEW = NullChoice(directions=2)


class Elements(HTMLParser):
    """The names of a page's elements, and its attributes that could load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.loads: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.loads += [name for name, _ in attrs if name in ("src", "href", "srcset", "action", "onclick")]


@pytest.fixture(scope="module")
def unembedding() -> Unembedding:
    """Of a model one of whose tokens is hostile."""
    real = read_unembedding(ABACUS / "abacus-F16.gguf")
    texts = [HOSTILE if token == 60 else text for token, text in enumerate(real.vocabulary.texts)]
    return replace(real, vocabulary=Vocabulary(tuple(texts), real.vocabulary.special))


@pytest.fixture(scope="module")
def reading(unembedding: Unembedding) -> Reading:
    matrix = unembedding.tensor.whole()
    model = replace(unembedding.model, name="<script>alert(1)</script>")
    vector = SteeringVector({1: matrix[60], 4: np.zeros(256, np.float32), 5: -matrix[60]}, model)
    return read_vector(vector, unembedding, top=4, null=FEW)


def check_page(html: str) -> None:
    elements = Elements(html)
    assert not elements.names & {"script", "img", "iframe", "object", "form", "link", "a"}
    assert not elements.loads
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import", html)
    assert "&lt;script" in html and "\x1b" not in html and "\u202e" not in html


def test_the_page_of_a_reading_escapes_what_it_shows(reading: Reading) -> None:
    topics = (LayerTopics(1, "", f"words of {HOSTILE}", "", "somebody"), LayerTopics(5, "", "", "no answer", "it"))
    html = reading_page(reading, topics)
    assert "&lt;script" in html and "no answer" in html and "zero: it says nothing" in html
    assert not Elements(html).names & {"script"}
    check_page(reading_page(reading))


def test_the_page_of_a_prompt_escapes_what_it_shows(unembedding: Unembedding) -> None:
    steering = (Steering(SteeringVector({3: 100 * unembedding.tensor.whole()[60]}, unembedding.model)),)
    with Engine.load(ABACUS / "abacus-F16.gguf", EngineOptions(threads=1, gpu_layers=0)) as engine:
        context = read_in_context(engine, unembedding, [60, 61, 62], steering, top=2, null=FEW)
    html = context_page(context)
    check_page(html)
    assert html.count("<td") == 3 * 3
    assert json.loads(json.dumps(context.to_json()))["layers"] == [3, 4, 5]


def test_texts_and_json_say_the_same(reading: Reading, tmp_path: Path) -> None:
    paths = write_texts(tmp_path / "lens", reading)
    assert [path.name for path in paths] == ["lens.json", "lens.csv", "layer-01.txt", "layer-04.txt", "layer-05.txt"]
    written = json.loads(paths[0].read_text())
    assert written["layers"][0]["top"][0]["token"] == 60
    assert written["layers"][2]["bottom"][0]["token"] == 60
    with paths[1].open(newline="") as file:
        table = list(csv.DictReader(file))
    first = written["layers"][0]
    assert [json.loads(row["text"]) for row in table][:2] == [one["text"] for one in first["top"][:2]]
    assert float(table[0]["score"]) == pytest.approx(first["top"][0]["score"], rel=1e-5)
    assert {row["layer"] for row in table} == {"1", "5"}
    lines = paths[2].read_text().splitlines()
    assert f"+1.0000  {quoted(HOSTILE)}" in lines
    assert "zero" in paths[3].read_text()


def test_a_quoted_token_is_one_line_that_json_reads_back() -> None:
    for text in (HOSTILE, "\n\n", ' "\\', "\ud7ff", "é ü", "\x9b", "\U0001f600"):
        assert json.loads(quoted(text)) == text
        assert quoted(text).isprintable()
