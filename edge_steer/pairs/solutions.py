"""A model's own solutions to calibration problems: generated, graded, kept on disk as they come, and read again.

Takes a Backend and a Task, gives Solutions. It knows nothing of pairs or of rewriting, nor which problems are right
to solve.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edge_steer.core.errors import EdgeSteerError, need
from edge_steer.core.progress import SILENT, Progress
from edge_steer.storage.provenance import Provenance, RunningModel, versions
from edge_steer.storage.records import Record, Store, read
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.rows import Row, complete, jobs_of
from edge_steer.tasks.task import Sample, Task

FORMAT = "edge-steer solutions 1"
CHOSEN = "chosen"  # the record that ends a run
Outcome = Literal["right", "wrong", "cut off", "error"]
Key = tuple[str, int]  # id of the problem, repeat


@dataclass(frozen=True)
class Solution:
    """One completion of a problem. question: as in the task; prompt: as asked, in the user's turn; answer: gold.

    finish: "stop" for a whole text; see backend.Completion for the others, and for `error`.
    """

    id: str
    repeat: int
    question: str
    prompt: str
    system: str | None
    answer: str
    text: str
    tokens: int
    correct: bool
    finish: str
    error: str = ""

    @property
    def key(self) -> Key:
        return self.id, self.repeat

    @property
    def whole(self) -> bool:
        """Whether the model ended it, and there is a text."""
        return self.finish == "stop" and bool(self.text.strip())

    @property
    def outcome(self) -> Outcome:
        if self.finish == "error":
            return "error"
        if not self.whole:
            return "cut off"
        return "right" if self.correct else "wrong"

    @property
    def digest(self) -> str:
        """SHA-256 of the problem and the text, in hex: what a rewrite of it depends on."""
        return hashlib.sha256(f"{self.question}\0{self.text}".encode()).hexdigest()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Solution":
        """From a record of the store. Errors: EdgeSteerError for anything else."""
        try:
            return cls(**record)
        except TypeError:
            raise EdgeSteerError(f"{str(dict(record))[:80]} is no solution") from None


def solutions_header(task: Task, provenance: Provenance) -> dict[str, object]:
    """What solutions depend on. The number of problems is not part of it: more of them go on in the same file."""
    need("evaluate")
    return {
        "format": FORMAT,
        "model": {**provenance.model},
        "backend": {**provenance.backend},
        "task": {"name": task.name, "grader": task.grader, "settings": asdict(task.settings)},
        "versions": {**provenance.versions, **versions("math-verify")},
    }


def generate_solutions(
    backend: RunningModel,
    task: Task,
    path: str | Path,
    *,
    count: int,
    at_once: int = 16,
    per_problem: int = 1,
    wrong: bool = False,
    graders: Graders | None = None,
    progress: Progress = SILENT,
) -> list[Solution]:
    """Solve problem after problem until `count` solutions are chosen, or the problems run out; the chosen ones.

    path: the file that every completion, chosen or not, is written to at once; what it holds is not generated again.
    The choice, by `usable_solutions`, comes last. at_once: the fewest problems answered together.
    per_problem: most solutions used of a problem. wrong: use wrong solutions too.
    Errors: EdgeSteerError for a number below 1, samples that are all the same, or a file of another model or of other
    problems.
    """
    if min(count, at_once, per_problem) < 1:
        raise EdgeSteerError(f"{count} solutions, {per_problem} a problem, {at_once} at once; each must be at least 1")
    with contextlib.ExitStack() as stack:
        graders = graders or stack.enter_context(Graders())
        store = stack.enter_context(Store.open(Path(path), solutions_header(task, backend.provenance)))
        solved = _solved(store, task)
        samples = {sample.id: sample for sample in task.samples}
        usable = len(usable_solutions(solved.values(), per_problem=per_problem, wrong=wrong))

        def keep(row: Row) -> None:
            nonlocal usable
            solution = _solution(task, samples[row.id], row)
            store.append(asdict(solution))
            solved[solution.key] = solution
            usable += solution.whole and (solution.correct or wrong)
            progress("solving", min(usable, count), count)

        progress("solving", min(usable, count), count)
        chosen: list[Solution] = []
        rest = task.samples
        while rest and len(chosen) < count:
            take = max(count - len(chosen), at_once)
            jobs, rest = jobs_of(replace(task, samples=rest[:take])), rest[take:]
            missing = [job for job in jobs if (job.sample.id, job.repeat) not in solved]
            complete(backend, missing, graders, keep, nll=False)
            batch = [solved[job.sample.id, job.repeat] for job in jobs]
            chosen += usable_solutions(batch, per_problem=per_problem, wrong=wrong)
            usable = len(usable_solutions(solved.values(), per_problem=per_problem, wrong=wrong))
        record = {CHOSEN: [[*solution.key] for solution in chosen[:count]]}
        if not store.records or store.records[-1] != record:
            store.append(record)
    return chosen[:count]


def usable_solutions(solutions: Iterable[Solution], *, per_problem: int = 1, wrong: bool = False) -> list[Solution]:
    """The first `per_problem` different whole solutions of each problem, right ones unless `wrong`."""
    usable: dict[str, list[Solution]] = {}
    for solution in solutions:
        same_problem = usable.setdefault(solution.id, [])
        if not solution.whole or not (solution.correct or wrong) or len(same_problem) >= per_problem:
            continue
        if all(solution.text != other.text for other in same_problem):
            same_problem.append(solution)
    return [solution for same_problem in usable.values() for solution in same_problem]


def read_solutions(path: str | Path) -> list[Solution]:
    """All solutions of a file, also while it is being filled. Errors: EdgeSteerError for any other file."""
    return _solutions(_read(Path(path)))


def read_chosen_solutions(path: str | Path) -> list[Solution]:
    """The solutions that were chosen when the file was last completed, in their order.

    Errors: as `read_solutions`, or EdgeSteerError for a file that is not complete, or in which none was chosen.
    """
    lines = _read(Path(path))
    by_key = {solution.key: solution for solution in _solutions(lines)}
    if not lines or CHOSEN not in lines[-1]:
        raise EdgeSteerError(f"{path} is not complete; generate the solutions again to go on where it stopped")
    chosen = [by_key[identity, repeat] for identity, repeat in lines[-1][CHOSEN]]
    if not chosen:
        raise EdgeSteerError(f"{path} has no solution to use: none was right and whole")
    return chosen


def _read(path: Path) -> list[Record]:
    header, lines = read(path)
    if header.get("format") != FORMAT:
        raise EdgeSteerError(f"{path} holds no solutions; expected a file of generated solutions")
    return lines


def _solutions(lines: Iterable[Record]) -> list[Solution]:
    return [Solution.of(line) for line in lines if CHOSEN not in line]


def _solved(store: Store, task: Task) -> dict[Key, Solution]:
    """What the store holds already. Errors: EdgeSteerError for a problem that is another one in the task."""
    samples = {sample.id: sample for sample in task.samples}
    solved = {solution.key: solution for solution in _solutions(store.records)}
    for solution in solved.values():
        sample = samples.get(solution.id)
        if sample and (sample.question, sample.answer) != (solution.question, solution.answer):
            raise EdgeSteerError(f"{store.path} has another problem under the id {solution.id!r}; name another file")
    return solved


def _solution(task: Task, sample: Sample, row: Row) -> Solution:
    return Solution(
        id=row.id,
        repeat=row.repeat,
        question=sample.question,
        prompt=task.messages(sample)[-1]["content"],
        system=task.settings.system,
        answer=sample.answer,
        text=row.text,
        tokens=row.tokens,
        correct=row.correct,
        finish=row.finish,
        error=row.error,
    )
