from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edge_steer.core.backend import EngineOptions, Sampling
from edge_steer.core.errors import EdgeSteerError
from edge_steer.llama.engine import Engine
from edge_steer.pairs import solutions as pairs_solutions
from edge_steer.pairs.solutions import Solution, kept, load, load_chosen, normal_text, shared_problems
from edge_steer.storage.records import Store
from edge_steer.tasks.answers import grade
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.task import Sample, Task

TASK = load_task("wordproblems", split="calibration", limit=24)


@pytest.fixture(scope="module")
def engine(bundled_f16: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f16, EngineOptions(threads=1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    with Graders(workers=1) as graders:
        yield graders


def header(task: Task = TASK) -> dict[str, object]:
    return pairs_solutions.header_of(task, {"name": "abacus"}, {"name": "llama.cpp"}, {})


def made(identity: str, text: str = "a", **fields: Any) -> Solution:
    return Solution(**{
        "id": identity, "repeat": 0, "question": f"q{identity}", "prompt": "p", "system": None, "answer": "1",
        "text": text, "tokens": 1, "correct": True, "finish": "stop", **fields,
    })  # fmt: skip


def test_solutions_are_the_models_own_right_and_as_many_as_asked(
    engine: Engine, graders: Graders, tmp_path: Path
) -> None:
    asked = replace(TASK, settings=replace(TASK.settings, prompt="{question}", system="Think."))
    seen: list[Solution] = []
    with Store.open(tmp_path / "s.jsonl", header(asked)) as store:
        chosen = pairs_solutions.generate(
            engine, asked, graders=graders, store=store, count=5, at_once=4, on_solution=seen.append
        )  # fmt: skip
    assert len(chosen) == 5
    assert load(tmp_path / "s.jsonl")[1] == seen
    in_order = sorted(seen, key=lambda solution: [sample.id for sample in TASK.samples].index(solution.id))
    assert load_chosen(tmp_path / "s.jsonl") == chosen == kept(in_order)[:5]
    for solution in chosen:
        assert grade(solution.text, solution.answer).correct
        sample = next(sample for sample in TASK.samples if sample.id == solution.id)
        assert (solution.question, solution.answer, solution.system) == (sample.question, sample.answer, "Think.")


def test_a_stopped_run_goes_on_and_a_larger_one_begins_with_what_is_there(
    engine: Engine, graders: Graders, tmp_path: Path
) -> None:
    path, settings = tmp_path / "s.jsonl", {"graders": graders, "at_once": 4}
    with Store.open(path, header()) as store:
        whole = pairs_solutions.generate(engine, TASK, store=store, count=6, **settings)  # type: ignore[arg-type]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    with pytest.raises(EdgeSteerError, match="is not complete"):
        load_chosen(path)
    again: list[Solution] = []
    with Store.open(path, header()) as store:
        resumed = pairs_solutions.generate(
            engine, TASK, store=store, count=6, on_solution=again.append, **settings  # type: ignore[arg-type]
        )  # fmt: skip
    assert [s.id for s in resumed] == [s.id for s in whole]
    assert len(again) == len(lines) - 1 - 3 - 1  # without the header, the kept and the choice
    with Store.open(path, header()) as store:
        more = pairs_solutions.generate(engine, TASK, store=store, count=8, **settings)  # type: ignore[arg-type]
    assert more[:6] == resumed and len(more) == 8
    with Store.open(path, header()) as store:
        before = len(store.records)
        assert pairs_solutions.generate(engine, TASK, store=store, count=8, **settings) == more  # type: ignore[arg-type]
        assert len(store.records) == before


def test_several_samples_give_several_different_solutions(engine: Engine, graders: Graders, tmp_path: Path) -> None:
    settings = replace(TASK.settings, samples=3, sampling=Sampling(temperature=1.0, seed=1))
    task = replace(TASK, samples=TASK.samples[:2], settings=settings)
    with Store.open(tmp_path / "s.jsonl", header(task)) as store:
        chosen = pairs_solutions.generate(
            engine, task, graders=graders, store=store, count=9, per_problem=2, wrong=True
        )
    texts = [solution.text for solution in chosen]
    assert len(texts) == len(set(texts)) == 4
    assert len(load(tmp_path / "s.jsonl")[1]) == 6


def test_a_file_of_another_task_is_not_mixed_in(engine: Engine, graders: Graders, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    with Store.open(path, header()) as store:
        store.append(asdict(made(TASK.samples[0].id)))
        with pytest.raises(EdgeSteerError, match="another problem under the id 'calibration-0-0'"):
            pairs_solutions.generate(engine, TASK, graders=graders, store=store, count=1)
        with pytest.raises(EdgeSteerError, match="must be at least 1"):
            pairs_solutions.generate(engine, TASK, graders=graders, store=store, count=0)
    warmer = replace(TASK, settings=replace(TASK.settings, max_tokens=5))
    with pytest.raises(EdgeSteerError, match=r"task\.settings\.max_tokens is 400 there and 5 here"):
        Store.open(path, header(warmer))


def test_what_is_kept() -> None:
    solutions = [
        made("1", correct=False),
        made("1", "b", repeat=1),
        made("1", "b", repeat=2),
        made("1", "c", repeat=3),
        made("2", finish="length"),
        made("3", " \n"),
        made("4", "", finish="error", error="too long"),
        made("5", "d"),
    ]
    assert [s.text for s in kept(solutions)] == ["b", "d"]
    assert [s.text for s in kept(solutions, per_problem=9)] == ["b", "c", "d"]
    assert [s.text for s in kept(solutions, per_problem=9, wrong=True)] == ["a", "b", "c", "d"]


def test_other_files_are_no_solutions(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"format": "other"}\n{"text": 1}\n')
    with pytest.raises(EdgeSteerError, match="holds no solutions"):
        load(path)
    path.write_text(f'{{"format": "{pairs_solutions.FORMAT}"}}\n{{"text": 1}}\n')
    with pytest.raises(EdgeSteerError, match="is no solution"):
        load(path)
    path.write_text(f'{{"format": "{pairs_solutions.FORMAT}"}}\n{{"chosen": []}}\n')
    with pytest.raises(EdgeSteerError, match="none was right and whole"):
        load_chosen(path)


def test_problems_are_compared_by_letters_and_digits() -> None:
    mine = [Sample("a", "Mia has  2½ Apples.\nHow many?", "1"), Sample("b", "Mia has 3 apples. How many?", "1")]
    theirs = [Sample("x", "mia has 2½ apples - how many", "1"), Sample("y", "Mia has 30 apples. How many?", "1")]
    assert shared_problems(mine, theirs) == [(mine[0], theirs[0])]
    assert normal_text("$\\frac{1}{2}$ of  a_b") == "frac 1 2 of a b"
    dev, test = (load_task("wordproblems", split=split, limit=50).samples for split in ("dev", "test"))
    assert not shared_problems(dev, test)
    assert len(shared_problems(dev, dev)) == 50
