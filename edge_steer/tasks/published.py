"""Published benchmarks: where each file comes from, and one reader for each format.

Takes a file in its published format, or fetches it from its pinned source, gives (id, question, gold answer) triples.
It knows nothing of prompts and models; a gold answer is written so that the grader reads it as meant.
"""

import hashlib
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.digests import digest
from edge_steer.storage.files import cache_folder, read_lines, readable, replacing
from edge_steer.storage.hub import dataset_file
from edge_steer.tasks.answers import Kind, last_boxed

Triple = tuple[str, str, str]  # id, question, gold answer
GITHUB = "https://raw.githubusercontent.com/{repo}/{revision}/{path}"
GSM8K = "openai/grade-school-math", "3101c7d5072418e28b9008a6636bde82a006892c"
QWEN_MATH = "QwenLM/Qwen2.5-Math", "a45202bd16f1ec06f433442dc1152d0074773465"
LOGIQA = "lgw863/LogiQA-dataset", "91e7b26bab6308fc222fe7f8838b61792f2f293f"
# Gold answers that no grader can read as published, by OlympiadBench's id: what they say in their problem's terms.
OLYMPIAD_ERRATA = {"1760": "90", "2045": "(0,4]"}


@dataclass(frozen=True)
class Source:
    """A file at a full commit hash, and the SHA-256 its content must have."""

    host: Literal["hub", "github"]
    repo: str
    revision: str
    path: str
    sha256: str

    def fetch(self) -> Path:
        """The file, from the cache or its host. Errors: EdgeSteerError if it cannot be had, or is another file."""
        cached = cache_folder() / "benchmarks" / f"{self.sha256}{Path(self.path).suffix}"
        if cached.is_file() and digest(cached) == self.sha256:
            return cached
        content = self._download()
        if (sha256 := hashlib.sha256(content).hexdigest()) != self.sha256:
            raise EdgeSteerError(f"{self} has the SHA-256 {sha256}, not {self.sha256}; it is not the file expected")
        cached.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cached) as temporary:
            temporary.write_bytes(content)
        return cached

    def __str__(self) -> str:
        host = "the Hugging Face data set" if self.host == "hub" else "github.com"
        return f"{self.path} of {host} {self.repo} at {self.revision[:10]}"

    def _download(self) -> bytes:
        if self.host == "hub":
            return dataset_file(self.repo, self.revision, self.path).read_bytes()
        url = GITHUB.format(repo=self.repo, revision=self.revision, path=self.path)
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                content: bytes = answer.read()
        except (OSError, http.client.HTTPException) as error:
            why = error.reason if isinstance(error, urllib.error.URLError) else error
            raise EdgeSteerError(f"cannot fetch {self}: {why}") from None
        return content


@dataclass(frozen=True)
class Benchmark:
    """How a published benchmark is read and graded. `averaged`: so small that one sample a problem says little.

    splits: where each comes from; empty for one that has to be at hand.
    """

    read: Callable[[Path], list[Triple]]
    splits: dict[str, Source]
    grader: Kind = "math"
    averaged: bool = False

    def file(self, split: str | None) -> Path:
        """The fetched file of a split; None is "test". Errors: EdgeSteerError for another split, or see Source."""
        source = self.splits.get(split or "test")
        if source is None:
            raise EdgeSteerError(f"no split {split!r}; there is {', '.join(self.splits)}")
        return source.fetch()


def read_gsm8k(path: Path) -> list[Triple]:
    """question; answer: a solution that ends in `#### 1,600`."""
    return [
        (str(i), _text(row, "question"), _text(row, "answer").rpartition("####")[2].strip().replace(",", ""))
        for i, row in enumerate(read_rows(path, "question", "answer"))
    ]


def read_math500(path: Path) -> list[Triple]:
    """problem, answer in LaTeX, unique_id."""
    return [
        (_text(row, "unique_id"), _text(row, "problem"), _text(row, "answer"))
        for row in read_rows(path, "unique_id", "problem", "answer")
    ]


def read_competition(path: Path) -> list[Triple]:
    """AMC and AIME: id, problem; answer: 27, 27.0 or "027"."""
    return [
        (_text(row, "id"), _text(row, "problem"), _plain_number(_text(row, "answer")))
        for row in read_rows(path, "id", "problem", "answer")
    ]


def read_olympiadbench(path: Path) -> list[Triple]:
    """id, context, question; final_answer: a list of LaTeX in dollars, several answers with commas; unit; error.

    `error` is the tolerance of a number.
    """
    triples = []
    for row in read_rows(path, "id", "question", "final_answer"):
        answers = row["final_answer"]
        name = _text(row, "id")
        if not isinstance(answers, list) or not answers:
            raise EdgeSteerError(f"{path}: problem {name}: final_answer is {answers!r}; a list of answers is expected")
        answer = ", ".join(re.split(r",?\s*\bwhere\b", str(one).replace("$", ""))[0].strip(" .") for one in answers)
        answer = OLYMPIAD_ERRATA.get(name, answer)
        if row.get("error"):
            answer += f" within {row['error']}"
        question = _text(row, "question")
        triples.append((name, f"{row['context']}\n\n{question}" if row.get("context") else question, answer))
    return triples


def read_minervamath(path: Path) -> list[Triple]:
    """idx, problem; solution: the gold answer is its last \\boxed{...}, without its unit."""
    triples = []
    for row in read_rows(path, "idx", "problem", "solution"):
        answer = last_boxed(_text(row, "solution"))
        if answer is None:
            raise EdgeSteerError(f"{path}: problem {row['idx']}: the solution has no \\boxed{{...}}")
        answer = re.sub(r"(?<=\d)\.(?=/)", "", answer.replace("$", "").replace("np.arcsin", r"\arcsin"))
        triples.append((_text(row, "idx"), _text(row, "problem"), answer))
    return triples


def read_deepscaler(path: Path) -> list[Triple]:
    """problem; answer in LaTeX. A JSON array, as published, or one object a line; the id is the place, from 0."""
    rows = read_rows(path, "problem", "answer", array=True)
    return [(str(i), _text(row, "problem"), _text(row, "answer")) for i, row in enumerate(rows)]


def read_logiqa(path: Path) -> list[Triple]:
    """Eight lines a problem: a blank one, the letter, the context, the question, four options."""
    lines = readable(path, "LogiQA, eight lines a problem").read_text("utf-8").rstrip("\n").split("\n")
    triples = []
    for start in range(0, len(lines), 8):
        blank, letter, context, question, *options = (
            line.strip() for line in (*lines[start : start + 8], *[""] * 8)[:8]
        )
        if blank or letter not in ("a", "b", "c", "d") or not all(options):
            raise EdgeSteerError(
                f"{path}, line {start + 1}: expected a blank line, a letter a-d, context, question, four options"
            )
        choices = "\n".join(f"{label}. {option}" for label, option in zip("ABCD", _in_order(options), strict=True))
        triples.append((str(start // 8), f"{context}\n{question}\n\n{choices}", letter.upper()))
    return triples


def read_rows(path: Path, *needed: str, array: bool = False) -> list[dict[str, Any]]:
    """JSON objects, one a line, each with the fields needed. array: or all in one JSON array.

    Errors: EdgeSteerError naming file, problem and field.
    """
    rows = []
    for number, row in enumerate(_objects(path, array), 1):
        if not isinstance(row, dict) or (missing := [name for name in needed if row.get(name) is None]):
            lacks = f"has no field {missing[0]!r}" if isinstance(row, dict) else "is no object"
            raise EdgeSteerError(f"{path}, problem {number} {lacks}; needed are {', '.join(needed)}")
        rows.append(row)
    return rows


def _objects(path: Path, array: bool) -> Iterator[Any]:
    """What is in a file of JSON lines, or in one array."""
    lines = read_lines(path, "a benchmark, one JSON object a line")
    if array and lines and lines[0].lstrip().startswith("["):
        try:
            yield from json.loads("\n".join(lines))
        except ValueError as error:
            raise EdgeSteerError(f"{path} is not JSON: {error}") from None
        return
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise EdgeSteerError(f"{path}, problem {number} is not JSON: {error}") from None


def _in_order(options: list[str]) -> list[str]:
    """Four options without their labels; some problems are printed A, C, B, D, and the letter means the label."""
    if sorted(option[:2] for option in options) == ["A.", "B.", "C.", "D."]:
        return [option[2:].strip() for option in sorted(options)]
    return [re.sub(rf"^{label}[.?\s]\s*", "", option) for label, option in zip("ABCD", options, strict=True)]


def _text(row: dict[str, Any], name: str) -> str:
    return str(row[name])


def _plain_number(answer: str) -> str:
    """27 for 27.0 and 027; anything else as it is."""
    return re.sub(r"^(-?)0+(?=\d)", r"\1", re.sub(r"\.0+$", "", answer.strip()))


def _qwen(name: str, sha256: str) -> dict[str, Source]:
    return {"test": Source("github", *QWEN_MATH, f"evaluation/data/{name}/test.jsonl", sha256)}


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark(
        read_gsm8k,
        {
            split: Source("github", *GSM8K, f"grade_school_math/data/{split}.jsonl", sha256)
            for split, sha256 in (
                ("test", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
                ("train", "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
            )
        },
    ),
    "math500": Benchmark(
        read_math500,
        {
            "test": Source(
                "hub",
                "HuggingFaceH4/MATH-500",
                "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
                "test.jsonl",
                "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
            )
        },
    ),
    "math": Benchmark(read_math500, {}),  # MATH without MATH500: 12,000 problems, as split by openai/prm800k
    "deepscaler": Benchmark(read_deepscaler, {}),
    "amc23": Benchmark(
        read_competition,
        _qwen("amc23", "43707e1ca784602d8479de24ee8ce36609dbebc46dd152b0b12a46611aa898a4"),
        averaged=True,
    ),
    "olympiadbench": Benchmark(
        read_olympiadbench, _qwen("olympiadbench", "bb8c1e38a16ea9eacb77530315a674d883f267fbff79183effc53681b4fcc416")
    ),
    "aime24": Benchmark(
        read_competition,
        _qwen("aime24", "af2b8bd2aa911b6333ad0df32f3ca05c7ae8ed10f1731f4372c8ae26990bf7ac"),
        averaged=True,
    ),
    "aime25": Benchmark(
        read_competition,
        {
            "test": Source(
                "hub",
                "math-ai/aime25",
                "563bb8404243c5f09de6ec262f2db674fe5bce9b",
                "test.jsonl",
                "b4e273c02d3e7fe1b74b59eae768fc8230bfb0f79539890cb56f4361caac0331",
            )
        },
        averaged=True,
    ),
    "minervamath": Benchmark(
        read_minervamath, _qwen("minerva_math", "0e656b430d3a0a1dab6aa853f453ba3805e28e2cabe4fc72486a897cc09d8ba2")
    ),
    "logiqa": Benchmark(
        read_logiqa,
        {
            "test": Source(
                "github", *LOGIQA, "Test.txt", "359acb78c37802208f7fde9e2f6574b8526527c63d6a336f90a53f1932cb4701"
            ),
            "eval": Source(
                "github", *LOGIQA, "Eval.txt", "4c49e6753b7262c001506b9151135abf722247035ab075dad93acdea5789c01f"
            ),
        },
        grader="letter",
    ),
}
