"""Rows, graded and scored; what a stop leaves behind; figures of rows against slow formulas."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from edge_steer.core import stats
from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.sampling import Sampling
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.evaluate import Evaluator
from edge_steer.evaluation.figures import compare, summarise, weighted
from edge_steer.llama.engine import Engine
from edge_steer.reference.model import Reference
from edge_steer.storage.records import Store
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.rows import UNSTEERED, Method, Row, complete, jobs_of
from edge_steer.tasks.task import Sample, Task

TASK = load_task("wordproblems", split="dev", limit=6)


@pytest.fixture(scope="module")
def engine(bundled_f16: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f16, EngineOptions(parallel=6, threads=1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    with Graders(1) as graders:
        yield graders


@pytest.fixture(scope="module")
def steered(bundled_vector: SteeringVector) -> Method:
    return Method("steered", (Steering(bundled_vector, 0.4, (5,)),))


@pytest.fixture(scope="module")
def rows(engine: Engine, graders: Graders) -> list[Row]:
    return Evaluator(engine, graders).rows(TASK)


def drawn(task: Task, samples: int, seed: int = 0) -> Task:
    """The task sampled at temperature 1."""
    return replace(task, settings=replace(task.settings, sampling=Sampling(1.0, seed=seed), samples=samples))


def test_rows_are_graded_and_scored(engine: Engine, rows: list[Row]) -> None:
    assert [row.id for row in rows] == [sample.id for sample in TASK.samples]
    for row, sample in zip(rows, TASK.samples, strict=True):
        assert row.task == "wordproblems"
        assert row.method == "unsteered"
        assert row.correct == (row.extracted == sample.answer)
        assert row.steps == len([part for part in row.text.split("\n\n") if part.strip()])
        assert row.finish == "stop"
        assert not row.error
        assert row.seconds > 0
        prompt = engine.chat(TASK.messages(sample))
        tokens = engine.encode(row.text, start=False)
        assert row.tokens == len(tokens)
        assert row.nll == pytest.approx(engine.nll((*prompt, *tokens), len(prompt)).mean(), abs=3e-3)
    assert len({row.prompt for row in rows}) == len(rows)
    assert any(row.correct for row in rows)


def test_two_runs_give_the_same_rows(engine: Engine, graders: Graders, steered: Method, bundled_f16: Path) -> None:
    task = drawn(TASK.limit(3), 2)
    first = [Evaluator(engine, graders).rows(task, method) for method in (UNSTEERED, steered)]
    with Engine.load(bundled_f16, EngineOptions(parallel=6, threads=1)) as another:
        again = [Evaluator(another, graders).rows(task, method) for method in (UNSTEERED, steered)]
    assert first == again
    assert len({row.text for row in first[0]}) > len(task.samples)


def test_steered_texts_are_scored_by_the_unsteered_model(
    engine: Engine, graders: Graders, steered: Method, rows: list[Row]
) -> None:
    told: list[Row] = []
    complete(engine, [*jobs_of(TASK), *jobs_of(TASK, steered)], graders, told.append)
    last = {row.key: row for row in told}
    assert len(last) == 2 * len(TASK.samples)
    assert len(told) == 3 * len(TASK.samples), "each steered row is told again with its score"
    assert not any(row.unscored_tokens for row in last.values())
    unscored = [row for row in told if row.unscored_tokens]
    assert {row.method for row in unscored} == {"steered"}
    for row in unscored:
        sample = next(sample for sample in TASK.samples if sample.id == row.id)
        prompt = engine.chat(TASK.messages(sample))
        assert row.nll is None
        assert engine.decode(row.unscored_tokens) == row.text
        assert last[row.key].nll == pytest.approx(engine.nll((*prompt, *row.unscored_tokens), len(prompt)).mean())
        assert last[row.key].prompt == next(r.prompt for r in rows if r.id == row.id)
    assert any(last[row.key].text != last[row.task, "unsteered", row.id, 0].text for row in unscored)
    silent: list[Row] = []
    complete(engine, jobs_of(TASK, steered), graders, silent.append, nll=False)
    assert [row.nll for row in silent] == [None] * len(TASK.samples)
    assert not any(row.unscored_tokens for row in silent)


def test_a_strength_of_zero_is_the_unsteered_model(
    engine: Engine, graders: Graders, bundled_vector: SteeringVector, rows: list[Row]
) -> None:
    told: list[Row] = []
    complete(engine, jobs_of(TASK, Method("zero", (Steering(bundled_vector, 0.0),))), graders, told.append)
    made = {row.id: replace(row, method="unsteered") for row in told}
    assert [made[row.id] for row in rows] == rows
    assert len(told) == len(rows)


def test_a_method_may_ask_with_another_system_message(engine: Engine, graders: Graders, rows: list[Row]) -> None:
    asked = Evaluator(engine, graders).rows(TASK.limit(1), Method("brief", system="Be brief."))[0]
    assert asked.prompt != rows[0].prompt
    task = replace(TASK, settings=replace(TASK.settings, system="Be brief.")).limit(1)
    same = Evaluator(engine, graders).rows(task)[0]
    assert replace(same, method="brief") == asked


def test_repeats_differ_and_are_reproducible(engine: Engine, graders: Graders) -> None:
    task = drawn(TASK.limit(1), 3)
    seeds = [job.seed for job in jobs_of(drawn(TASK, 3))]
    assert len({*seeds}) == len(seeds)
    assert seeds == [job.seed for job in jobs_of(drawn(TASK, 3), Method("other"))]
    assert seeds[:3] != [job.seed for job in jobs_of(drawn(TASK, 3, seed=1))][:3]
    assert [row.repeat for row in Evaluator(engine, graders).rows(task)] == [0, 1, 2]
    with pytest.raises(EdgeSteerError, match="temperature"):
        jobs_of(replace(TASK, settings=replace(TASK.settings, samples=2)))


def test_a_prompt_that_does_not_fit_is_an_error_row(bundled_f16: Path, graders: Graders, steered: Method) -> None:
    long = Sample("long", "apples " * 400, "1")
    task = replace(TASK, samples=(TASK.samples[0], long, *TASK.samples[1:3]))
    with Engine.load(bundled_f16, EngineOptions(parallel=4, threads=1, context=400)) as engine:
        for method in (UNSTEERED, steered):
            made = Evaluator(engine, graders).rows(task, method)
            failed = made.pop(1)
            assert (failed.id, failed.finish, failed.correct, failed.nll) == ("long", "error", False, None)
            assert "400" in failed.error
            assert all(row.answered and row.nll is not None and row.tokens for row in made)
            summary = summarise([*made, failed])
            assert (summary.samples, summary.errors) == (4, 1)
            assert summary.accuracy == sum(row.correct for row in made) / 4
            assert summary.tokens == statistics.fmean(row.tokens for row in made)
        with pytest.raises(EdgeSteerError, match="no completion succeeded"):
            summarise([failed])


def test_an_interrupted_run_resumes(
    engine: Engine, graders: Graders, steered: Method, rows: list[Row], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    for method, stop_at in ((UNSTEERED, 2), (steered, 3), (steered, 8)):
        told: list[Row] = []

        def stop(row: Row, told: list[Row] = told, at: int = stop_at) -> None:
            told.append(row)
            if len(told) == at:
                raise KeyboardInterrupt

        with Store.open(path, {}) as store, pytest.raises(KeyboardInterrupt):
            Evaluator(engine, graders, store=store).rows(TASK, method, on_row=stop)
        with path.open("a") as file:
            file.write('{"id": "torn')
    with Store.open(path, {}) as store:
        before = {Row.of(record).key for record in store.records}
        made = [Evaluator(engine, graders, store=store).rows(TASK, method) for method in (UNSTEERED, steered)]
        kept = {Row.of(record).key: Row.of(record) for record in store.records}
        assert len(before) == 2 + 6
        assert [*kept.values()].count(made[0][0]) == 1
        assert [kept[row.key] for row in made[0] + made[1]] == made[0] + made[1]
        assert all(row.nll is not None and not row.unscored_tokens for row in kept.values())
        count = len(store.records)
        again = Evaluator(engine, graders, store=store).rows(TASK, steered, on_row=lambda _: pytest.fail("again"))
        assert again == made[1]
        assert len(store.records) == count
    assert [row.text for row in made[0]] == [row.text for row in rows]


def test_the_reference_makes_the_same_rows_by_another_route(
    bundled: Reference, graders: Graders, steered: Method, bundled_f32: Path
) -> None:
    task = TASK.limit(3)
    with Engine.load(bundled_f32, EngineOptions(parallel=3, threads=1, kv_type="f32", flash_attention="off")) as exact:
        for method in (UNSTEERED, steered):
            for a, b in zip(
                Evaluator(bundled, graders).rows(task, method),
                Evaluator(exact, graders).rows(task, method),
                strict=True,
            ):
                assert a == replace(b, nll=a.nll)
                assert a.nll == pytest.approx(b.nll, abs=1e-4)


def test_a_row_is_its_record(rows: list[Row]) -> None:
    for row in (rows[0], replace(rows[0], nll=None, unscored_tokens=(3, 4))):
        assert Row.of(row.record()) == row
    assert "unscored_tokens" not in rows[0].record()
    written_earlier = {**rows[0].record(), "nll": None, "ids": [3, 4]}
    assert Row.of(written_earlier) == replace(rows[0], nll=None, unscored_tokens=(3, 4))
    for damaged in ({"id": "a"}, {**rows[0].record(), "tokens": "12"}, {**rows[0].record(), "more": 1}):
        with pytest.raises(EdgeSteerError, match="no row"):
            Row.of(damaged)


def made_up(
    correct: list[list[int]], task: str = "t", method: str = "unsteered", *, shift: int = 0, seed: int = 0
) -> list[Row]:
    """Rows of problems 0.. with the given grades of their repeats."""
    rng = np.random.default_rng(seed)
    return [
        Row(
            task=task, id=str(i), repeat=k, method=method, prompt="",
            text="1 + 1 = 2. " * (1 + i % 4), tokens=int(rng.integers(50, 90)) + shift,
            steps=int(rng.integers(0, 9)), correct=bool(grade), extracted="", finish="stop", error="", seconds=0.0,
            nll=float(rng.random()),
        )
        for i, grades in enumerate(correct)
        for k, grade in enumerate(grades)
    ]  # fmt: skip


def test_figures_of_one_completion_each() -> None:
    found = made_up([[1], [0], [1], [1], [0], [1], [1]])
    found[0] = replace(found[0], finish="length", error="timed out after 10 s", steps=0)
    summary = summarise(found)
    assert (summary.samples, summary.completions, summary.errors, summary.truncated) == (7, 7, 1, 1)
    assert summary.accuracy == pytest.approx(5 / 7)
    assert summary.accuracy_interval == stats.wilson(5, 7)
    assert summary.density == pytest.approx(statistics.fmean(row.tokens / max(row.steps, 1) for row in found))
    assert summary.nll == pytest.approx(statistics.fmean(row.nll or 0 for row in found))
    tokens = np.array([float(row.tokens) for row in found])
    assert summary.figures["tokens"].interval == stats.bootstrap(tokens)
    assert summarise([replace(row, nll=None) for row in found]).nll is None
    assert asdict(summary)["figures"]["steps"]["mean"] == summary.steps


def test_figures_of_several_completions_are_means_over_problems() -> None:
    found = made_up([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 0]])
    summary = summarise(found)
    assert (summary.samples, summary.completions) == (5, 20)
    assert summary.accuracy == pytest.approx((0.5 + 1 + 0 + 0.25 + 0.75) / 5)
    assert summary.accuracy_interval == stats.bootstrap(np.array([0.5, 1, 0, 0.25, 0.75]))
    assert summarise(made_up([[0, 0]] * 30)).accuracy_interval == stats.wilson(0, 30), "never an interval without width"
    by_problem = [statistics.fmean(row.steps for row in found if row.id == str(i)) for i in range(5)]
    assert summary.figures["steps"].interval == stats.bootstrap(np.array(by_problem))


def test_too_little_data_says_so() -> None:
    few = summarise(made_up([[1], [0], [1]]))
    assert few.accuracy_interval == stats.wilson(2, 3)
    assert few.figures["steps"].interval is None
    assert compare(made_up([[1], [0]]), made_up([[1], [0]], method="b")).differences["steps"].interval is None
    with pytest.raises(EdgeSteerError, match="no rows"):
        summarise([])
    with pytest.raises(EdgeSteerError, match="no summaries"):
        weighted([])
    with pytest.raises(EdgeSteerError, match="no problem in common"):
        compare(made_up([[1]]), made_up([[1]], task="other"))


def test_the_weighted_average_is_that_of_all_problems_together() -> None:
    large, small = made_up([[i % 3 > 0] for i in range(60)]), made_up([[0]] * 4 + [[1]] * 2, task="u", seed=3)
    average, pooled = weighted([summarise(large), summarise(small)]), summarise([*large, *small])
    assert (average.samples, average.completions) == (66, 66)
    for name, figure in average.figures.items():
        assert figure.mean == pytest.approx(pooled.figures[name].mean), name
        assert figure.interval is not None
        assert figure.interval[0] < figure.mean < figure.interval[1]
    assert average.accuracy_interval == stats.combined(
        [60 / 66, 6 / 66], [40 / 60, 2 / 6], [stats.wilson(40, 60), stats.wilson(2, 6)]
    )
    unscored = summarise([replace(row, nll=None) for row in small])
    assert weighted([summarise(large), unscored]).nll is None
    assert weighted([summarise(large), summarise(small[:3])]).figures["steps"].interval is None


def test_a_comparison_is_paired() -> None:
    before = made_up([[1], [1], [1], [0], [0], [1], [0], [0]])
    after = made_up([[1], [0], [1], [1], [1], [1], [1], [0]], method="steered", shift=-20)
    found = compare(before, after)
    assert (found.before, found.after, found.problems, found.left_out) == ("unsteered", "steered", 8, 0)
    assert (found.lost, found.gained) == (1, 3)
    assert found.p_value == stats.mcnemar(1, 3)
    assert found.differences["accuracy"].mean == pytest.approx(0.25)
    assert found.differences["tokens"].mean == -20
    assert found.differences["tokens"].interval == pytest.approx((-20, -20)), "the same problems: nothing else differs"
    change = np.array([b.density - a.density for a, b in zip(before, after, strict=True)])
    assert found.differences["density"].interval == stats.bootstrap(change)


def test_a_comparison_takes_the_problems_both_have() -> None:
    before = made_up([[1], [1], [1], [0], [0], [1]])
    after = made_up([[1]] * 9, method="steered")[1:]
    after[0] = replace(after[0], finish="error", error="too long", tokens=0, nll=None, correct=False)
    found = compare(before, after)
    assert (found.problems, found.left_out, found.lost, found.gained) == (5, 4, 1, 2)
    assert found.differences["accuracy"].problems == 5
    assert found.differences["tokens"].problems == found.differences["nll"].problems == 4
    several = compare(made_up([[1, 0]] * 5), made_up([[1, 1]] * 5, method="b"))
    assert (several.lost, several.gained, several.p_value) == (None, None, None)
    assert several.differences["accuracy"].mean == 0.5


def test_what_line_breaks_do_not_change() -> None:
    text = "First, 3 * 4 = 12.\n\nThen 12 + 1 = 13. So there are 13!"
    rows = [replace(row, text=text, tokens=24) for row in made_up([[1], [1], [0], [1], [1], [1], [0], [1]])]
    reflowed = [replace(row, text=" ".join(text.split()), steps=1, method="reflowed") for row in rows]
    before, after = summarise(rows), summarise(reflowed)
    assert before.density != after.density
    for name, mean in (("sentence", 24 / 3), ("calculations", 100 * 2 / 24), ("right_answer", 8 * 24 / 6)):
        assert before.figures[name].mean == after.figures[name].mean == pytest.approx(mean)
        assert compare(rows, reflowed).differences[name].mean == 0


def test_tokens_per_right_answer_is_a_ratio_of_sums() -> None:
    before, after = made_up([[1], [0]] * 20), made_up([[1], [1], [1], [0]] * 10, method="b", shift=-20)
    first, second = (summarise(rows).figures["right_answer"] for rows in (before, after))
    assert first.mean == pytest.approx(sum(row.tokens for row in before) / 20)
    assert first.interval is not None
    assert first.interval[0] < first.mean < first.interval[1]
    change = compare(before, after).differences["right_answer"]
    assert change.mean == pytest.approx(second.mean - first.mean)
    assert change.interval is not None
    assert change.interval[1] < 0
    few = summarise(made_up([[1], *[[0]] * 7])).figures["right_answer"]
    assert few.interval is None, "draws without a right answer have no bound"
    assert "right_answer" not in summarise(made_up([[0]] * 8)).figures
