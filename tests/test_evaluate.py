"""Rows on disk first; a stopped run goes on where it ended."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_steer.engine import Engine
from edge_steer.errors import EdgeSteerError
from edge_steer.evaluate import Row, evaluate, summarise
from edge_steer.tasks import word_problems

SAMPLES = word_problems("dev", 6)


@pytest.fixture(scope="module")
def engine(bundled_f16: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f16, parallel=6) as engine:
        yield engine


def test_rows_are_counted_and_graded(engine: Engine) -> None:
    rows = evaluate(engine, SAMPLES)
    assert [row.id for row in rows] == [sample.id for sample in SAMPLES]
    summary = summarise(rows)
    assert summary.samples == 6
    assert summary.accuracy == sum(row.correct for row in rows) / 6
    assert summary.accuracy_interval[0] <= summary.accuracy <= summary.accuracy_interval[1]
    assert summary.density == pytest.approx(sum(row.tokens / row.steps for row in rows) / 6)


def test_an_interrupted_run_resumes(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    seen: list[str] = []

    def stop(row: Row) -> None:
        seen.append(row.id)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(engine, SAMPLES, path=path, key="a", on_row=stop)
    with path.open("a") as file:
        file.write('{"id": "torn')
    resumed: list[str] = []
    rows = evaluate(engine, SAMPLES, path=path, key="a", on_row=lambda row: resumed.append(row.id))
    assert set(seen).isdisjoint(resumed)
    assert len(seen) + len(resumed) == len(SAMPLES)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()[1:]] == seen + resumed
    again = evaluate(engine, SAMPLES, path=path, key="a", on_row=lambda _row: pytest.fail("made twice"))
    assert again == rows


def test_rows_of_another_key_are_made_anew(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    evaluate(engine, SAMPLES[:2], path=path, key="a")
    made: list[str] = []
    evaluate(engine, SAMPLES[:2], path=path, key="b", on_row=lambda row: made.append(row.id))
    assert len(made) == 2


def test_no_rows_is_an_error() -> None:
    with pytest.raises(EdgeSteerError, match="no rows"):
        summarise([])
