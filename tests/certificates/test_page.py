"""report.html of real certificates: what stands first, what is marked, that it loads nothing and escapes everything."""

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from paths import ROOT

from edge_steer.certificates import page as certificates_page
from edge_steer.certificates.behaviour import RowsByDose
from edge_steer.certificates.certificate import Certificate, read_certificate
from edge_steer.certificates.examples import (
    SHOWN_AFTER,
    SHOWN_BEFORE,
    Example,
    cut_where_they_part,
    worst_examples,
)
from edge_steer.certificates.page import PAGE, page, read_rows, write_page
from edge_steer.commands.main import main
from edge_steer.parity.findings import VERDICT_WORDS
from edge_steer.reference.model import Reference
from edge_steer.tasks.rows import Row
from edge_steer.tasks.task import Sample
from edge_steer.tasks.wordproblems import word_problems

ABACUS = ROOT / "models" / "abacus"
DENSE = ROOT / "export" / "abacus" / "dense" / "vector.gguf"
PROBLEMS = 5
VOID = {"meta", "br", "img", "hr", "link", "input"}
TYPE = '<i>&"$_$'
HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """Elements with their attributes, and the text under each; tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[tuple[str, list[str]]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        opened, text = self._open.pop()
        assert opened == tag
        self.texts.setdefault(tag, []).append("".join(text))

    def handle_data(self, data: str) -> None:
        for _, text in self._open:
            text.append(data)

    def words(self, tag: str) -> list[str]:
        return [" ".join(text.split()) for text in self.texts.get(tag, [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certified")
    return certified(
        folder, "--quants", "F16,Q2_K", "--vector", f"{DENSE}:0.325", "--task", "wordproblems", "--problems", PROBLEMS,
        "--doses", "0,1",
    )  # fmt: skip


@pytest.fixture(scope="module")
def certificate(folder: Path) -> Certificate:
    return read_certificate(folder / "certificate.json")


@pytest.fixture(scope="module")
def sheet(folder: Path) -> Page:
    return Page((folder / PAGE).read_text("utf-8"))


def certified(folder: Path, *options: object) -> Path:
    command = ["parity", ABACUS, "--reference", ABACUS, "--threads", 1, "--out", folder, *options]
    made = CliRunner().invoke(main, [*map(str, command)], catch_exceptions=False)
    assert "report.html" in made.output, made.output
    return folder


def rows_of(folder: Path, certificate: Certificate) -> dict[str, RowsByDose]:
    names = ("reference", "F16", "Q2_K")
    return {name: read_rows(folder / "rows" / f"{name}.jsonl", certificate.doses) for name in names}


def worst(folder: Path, certificate: Certificate, problems: dict[str, Sample] | None = None) -> list[Example]:
    rows = rows_of(folder, certificate)
    return worst_examples(certificate.files[1].behaviour, rows["reference"], rows["Q2_K"], problems or {})


def test_verdicts_stand_first_then_plots_figures_and_answers(sheet: Page, certificate: Certificate) -> None:
    assert sheet.words("h1") == ["abacus, steered: llama.cpp against PyTorch"]
    assert sheet.words("h2") == [
        "Verdicts", "What was compared", "Plots", "Findings", "Worst answers, side by side", "Check it again",
    ]  # fmt: skip
    first = sheet.words("tr")[1:3]
    for row, entry in zip(first, certificate.files, strict=True):
        assert row.startswith(entry.quant)
        assert VERDICT_WORDS[entry.verdict] in row
    accuracy = certificate.files[1].behaviour[1].other.accuracy
    assert f"{accuracy:.1%}" in first[1]
    steered = certificate.files[0].report.steered
    assert steered
    mantissa, exponent = f"{steered.kl['mean']:.1e}".split("e-")
    raised = str(int(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    assert f"{mantissa}×10⁻{raised}" in first[0]  # noqa: RUF001
    cells = sheet.words("td")
    for entry in certificate.files:
        assert all(finding.name in cells for finding in entry.report.findings)
        assert entry.digest in cells


def test_what_keeps_a_file_from_passing_is_said(certificate: Certificate) -> None:
    changed = json.loads(json.dumps(certificate.to_json()))
    [finding] = [found for found in changed["files"][1]["findings"] if found["name"] == "steered: mean KL"]
    finding |= {"value": 0.25, "tolerance": 0.1, "interval": None, "verdict": "fail"}
    sheet = Page(page(Certificate.from_json(changed), {}, {}))
    assert "Q2_K: steered: mean KL is 0.250; at most 0.1 is allowed: out of tolerance." in sheet.words("li")
    assert "out of tolerance" in sheet.words("header")[0]


def test_headings_descend_and_ids_are_unique(sheet: Page) -> None:
    levels = [int(tag[1]) for tag, _ in sheet.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [given["id"] for _, given in sheet.elements if "id" in given]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    named = {given[key] for _, given in sheet.elements for key in ("aria-labelledby",) if key in given}
    assert named <= {*ids}
    assert ("html", {"lang": "en"}) in sheet.elements
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in sheet.elements


def test_the_page_loads_nothing(folder: Path, sheet: Page) -> None:
    text = (folder / PAGE).read_text("utf-8")
    tags = {tag for tag, _ in sheet.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "image"}
    for _, given in sheet.elements:
        for key, value in given.items():
            assert key not in ("src", "srcset", "action", "background")
            assert not key.startswith("on")
            if "href" in key:
                assert value and value.startswith("#")
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", text))
    assert "@import" not in text
    assert {*re.findall(r'(\S+)="https?:', text)} <= {"xmlns", "xmlns:xlink"}
    assert len(text.encode()) < 1.5e6


def test_plots_say_in_words_what_they_show(sheet: Page, certificate: Certificate) -> None:
    labels = [given["aria-label"] or "" for tag, given in sheet.elements if given.get("role") == "img"]
    assert len(labels) == sum(tag == "svg" for tag, _ in sheet.elements) == 8
    assert labels[0].startswith("Accuracy. reference 100.0% at 0, 100.0% at 1; F16 100.0% at 0")
    assert all(label.count("Q2_K") == 1 for label in labels)
    drawn = {target for _, given in sheet.elements for key, target in given.items() if key.endswith("href")}
    assert drawn <= {f"#{given['id']}" for _, given in sheet.elements if "id" in given}


def test_the_first_token_that_differs_is_marked(
    folder: Path, certificate: Certificate, sheet: Page, bundled: Reference
) -> None:
    found = worst(folder, certificate)
    assert found
    assert all(example.dose == 1 for example in found)
    marks = sheet.texts["mark"]
    for example in found:
        ours, theirs = example.reference, example.file
        assert ours.common == theirs.common
        assert ours.gap + ours.marked != theirs.gap + theirs.marked
        for side in (ours, theirs):
            assert side.left_out == (0, 0)
            assert side.common + side.gap + side.marked + side.rest == side.row.text
            ids = bundled.encode(side.row.text, start=False)
            begin, end = (len(bundled.decode(ids[:count])) for count in (example.tokens, example.tokens + 1))
            assert begin < len(side.common + side.gap + side.marked)
            assert end > len(side.common)
            assert any(mark.lstrip("↵") == side.marked for mark in marks)


def test_answers_gone_wrong_come_before_those_that_part_earliest(folder: Path, certificate: Certificate) -> None:
    rows = rows_of(folder, certificate)
    parted = certificate.files[1].behaviour[1].parted
    last = parted[-1][0]
    rows["Q2_K"][1.0] = [replace(row, correct=row.correct and row.id != last) for row in rows["Q2_K"][1.0]]
    found = worst_examples(certificate.files[1].behaviour, rows["reference"], rows["Q2_K"], {})
    assert found[0].turned_wrong
    assert last in [example.id for example in found if example.turned_wrong]
    others = [example.tokens for example in found if not example.turned_wrong]
    assert others == sorted(others)
    assert len({example.id for example in found}) == len(found)


def test_a_committed_certificate_gives_the_same_page(folder: Path, certificate: Certificate) -> None:
    before = (folder / PAGE).read_bytes()
    path = write_page(folder, certificate, rows_of(folder, certificate)["reference"], word_problems("test", PROBLEMS))
    assert path.read_bytes() == before
    assert "Right answer" in before.decode()
    alone = Page(write_page(folder, certificate, {}).read_text("utf-8"))
    assert "Some answers differ, but those of the reference do not lie beside this page." in alone.words("p")
    path.write_bytes(before)
    assert not list(folder.glob("*.partial"))


def test_whatever_a_certificate_holds_is_escaped(folder: Path, certificate: Certificate) -> None:
    rows = rows_of(folder, certificate)
    problems = [replace(sample, question=HOSTILE, answer=HOSTILE) for sample in word_problems("test", PROBLEMS)]
    for name in ("reference", "Q2_K"):
        rows[name][1.0] = [
            replace(row, text=f"{name} {HOSTILE}{row.text}", extracted=HOSTILE) for row in rows[name][1.0]
        ]
    changed = json.loads(json.dumps(certificate.to_json()))
    changed["reference"] |= {"name": HOSTILE, "source": HOSTILE, "revision": HOSTILE}
    changed["files"][1] |= {"quant": TYPE, "file": HOSTILE, "source": HOSTILE, "digest": HOSTILE}
    changed["files"][1]["findings"][0]["name"] = HOSTILE
    changed["steering"][0]["vector"] = changed["task"]["name"] = changed["versions"]["cpu features"] = HOSTILE
    hostile = Certificate.from_json(changed)
    plain = Counter(tag for tag, _ in Page(page(certificate, rows["reference"], rows)).elements)
    sheet = Page(page(hostile, rows["reference"], {TYPE: rows["Q2_K"], "F16": rows["F16"]}, problems))
    assert not {tag for tag, _ in sheet.elements} & {"script", "img"}
    assert {tag for tag, _ in sheet.elements} == {*plain}
    assert not any(key.startswith("on") for _, given in sheet.elements for key in given)
    assert sheet.words("h1") == [f"{HOSTILE}, steered: llama.cpp against PyTorch"]
    assert TYPE in sheet.texts["text"]
    assert any(HOSTILE in text for text in sheet.texts["div"])


@pytest.mark.parametrize(
    ("ours", "theirs", "marked"),
    [
        ("One. Two", "One.\n\nTwo", ("Two", "\n\nTwo")),
        ("5 + 48 = 53.", "5 + 58 = 63.", ("48", "58")),
        ("It is so.", "It is", ("so", "")),
        ("", "Yes", ("", "Yes")),
        ("a  b", "a b", ("b", "b")),
        ("end ", "end", (" ", "")),
        ("naïve café", "naïve cafe", ("café", "cafe")),
    ],
)
def test_where_two_texts_part(row: Row, ours: str, theirs: str, marked: tuple[str, str]) -> None:
    found = cut_where_they_part(replace(row, text=ours), replace(row, text=theirs))
    assert tuple(side.marked for side in found) == marked
    assert [side.common + side.gap + side.marked + side.rest for side in found] == [ours, theirs]


def test_long_texts_are_shown_around_the_mark(row: Row) -> None:
    before, after = "word " * 1000, " tail" * 1000
    left, _ = cut_where_they_part(replace(row, text=f"{before}one{after}"), replace(row, text=f"{before}two{after}"))
    assert left.marked == "one"
    assert len(left.common) == SHOWN_BEFORE
    assert len(left.rest) == SHOWN_AFTER
    assert left.left_out == (len(before) - 1 - SHOWN_BEFORE, len(after) - SHOWN_AFTER)


@pytest.fixture
def row(folder: Path, certificate: Certificate) -> Row:
    return rows_of(folder, certificate)["reference"][1.0][0]


def test_texts_alone_give_a_page_without_answers_and_effect(tmp_path: Path) -> None:
    certified(tmp_path, "--quants", "F16", "--text-file", ABACUS / "pairs.jsonl", "--texts", 2)
    sheet = Page((tmp_path / PAGE).read_text("utf-8"))
    assert sheet.words("h1") == ["abacus: llama.cpp against PyTorch"]
    assert "Worst answers, side by side" not in sheet.words("h2")
    assert not [heading for heading in sheet.words("th") if heading.startswith(("Effect", "Accuracy"))]
    assert sum(tag == "svg" for tag, _ in sheet.elements) == 1
    assert "2 unsteered" in sheet.words("dd")


def test_without_matplotlib_there_are_no_plots(
    folder: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates_page, "find_spec", lambda _: None)
    rows = rows_of(folder, certificate)
    sheet = Page(page(certificate, rows["reference"], rows))
    assert "svg" not in {tag for tag, _ in sheet.elements}
    assert "Plots" not in sheet.words("h2")
    assert "Worst answers, side by side" in sheet.words("h2")
