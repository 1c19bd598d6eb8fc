"""A model's own solutions to calibration problems: made, graded, kept on disk as they come, and read again.

Takes a Backend and a Task, gives Solutions; says which problems are also evaluation problems. It knows nothing of
pairs or of rewriting.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edge_steer.core.backend import Backend
from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.records import Record, Store, read
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.rows import Row, answer, jobs_of
from edge_steer.tasks.task import Sample, Task

FORMAT = "edge-steer solutions 1"
CALIBRATION = {"gsm8k": "train", "wordproblems": "calibration"}  # splits that no evaluation uses
CHOSEN = "chosen"  # the record that ends a run
OnSolution = Callable[["Solution"], None]


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
    def whole(self) -> bool:
        """Whether the model ended it, and there is a text."""
        return self.finish == "stop" and bool(self.text.strip())

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


def header_of(
    task: Task, model: Mapping[str, object], backend: Mapping[str, object], versions: Mapping[str, str]
) -> dict[str, object]:
    """What solutions depend on. The number of problems is not part of it: more of them go on in the same file."""
    return {
        "format": FORMAT,
        "model": {**model},
        "backend": {**backend},
        "task": {"name": task.name, "grader": task.grader, "settings": asdict(task.settings)},
        "versions": {**versions},
    }


def generate(
    backend: Backend,
    task: Task,
    *,
    graders: Graders,
    store: Store,
    count: int,
    at_once: int = 8,
    per_problem: int = 1,
    wrong: bool = False,
    on_solution: OnSolution | None = None,
) -> list[Solution]:
    """Solve problem after problem until `count` solutions are chosen, or the problems run out; the chosen ones.

    As many problems as solutions are missing are answered together, at least `at_once`. Every completion, chosen or
    not, is in the store at once, and what it holds is not made again; the choice, by `kept`, comes last.
    Errors: EdgeSteerError for a number below 1, samples that are all the same, or a store of other problems.
    """
    if min(count, at_once, per_problem) < 1:
        raise EdgeSteerError(f"{count} solutions, {per_problem} a problem, {at_once} at once; each must be at least 1")
    by_id = {sample.id: sample for sample in task.samples}
    found = {(s.id, s.repeat): s for s in _solutions(store.records)}
    for key, solution in found.items():
        sample = by_id.get(solution.id)
        if sample and (sample.question, sample.answer) != (solution.question, solution.answer):
            raise EdgeSteerError(f"{store.path} has another problem under the id {key[0]!r}; name another --out")

    def keep(row: Row) -> None:
        solution = _solution(task, by_id[row.id], row)
        store.append(asdict(solution))
        found[row.id, row.repeat] = solution
        if on_solution:
            on_solution(solution)

    chosen: list[Solution] = []
    left = task.samples
    while left and len(chosen) < count:
        take = max(count - len(chosen), at_once)
        part, left = replace(task, samples=left[:take]), left[take:]
        jobs = [job for job in jobs_of(part) if (job.sample.id, job.repeat) not in found]
        answer(backend, jobs, graders, keep, nll=False)
        made = [found[job.sample.id, job.repeat] for job in jobs_of(part)]
        chosen += kept(made, per_problem=per_problem, wrong=wrong)
    record = {CHOSEN: [[solution.id, solution.repeat] for solution in chosen[:count]]}
    if not store.records or store.records[-1] != record:
        store.append(record)
    return chosen[:count]


def kept(solutions: Iterable[Solution], *, per_problem: int = 1, wrong: bool = False) -> list[Solution]:
    """The first `per_problem` different whole solutions of each problem, right ones unless `wrong`."""
    chosen: dict[str, list[Solution]] = {}
    for solution in solutions:
        mine = chosen.setdefault(solution.id, [])
        if not solution.whole or not (solution.correct or wrong) or len(mine) >= per_problem:
            continue
        if all(solution.text != other.text for other in mine):
            mine.append(solution)
    return [solution for mine in chosen.values() for solution in mine]


def load(path: Path) -> tuple[Record, list[Solution]]:
    """Header and all solutions of a file, also while it is being filled. Errors: EdgeSteerError for any other file."""
    header, records = read(path)
    if header.get("format") != FORMAT:
        raise EdgeSteerError(f"{path} holds no solutions; expected what 'edge-steer pairs generate' writes")
    return header, _solutions(records)


def load_chosen(path: Path) -> list[Solution]:
    """The solutions that were chosen when the file was last completed, in their order.

    Errors: as `load`, or EdgeSteerError for a file that is not complete, or in which none was chosen.
    """
    _, solutions = load(path)
    by_key = {(solution.id, solution.repeat): solution for solution in solutions}
    last = read(path)[1][-1:]
    if not last or CHOSEN not in last[0]:
        raise EdgeSteerError(f"{path} is not complete; run 'edge-steer pairs generate' again to go on")
    chosen = [by_key[identity, repeat] for identity, repeat in last[0][CHOSEN]]
    if not chosen:
        raise EdgeSteerError(f"{path} has no solution to use: none was right and whole")
    return chosen


def shared_problems(samples: Sequence[Sample], evaluation: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Each sample that is also an evaluation problem, with that problem: letters and digits alone are compared."""
    known = {normal_text(sample.question): sample for sample in evaluation}
    return [(sample, known[text]) for sample in samples if (text := normal_text(sample.question)) in known]


def normal_text(text: str) -> str:
    """Lower-case letters and digits in Unicode's compatibility form, with nothing between them but single spaces."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold().replace("_", " ")))


def _solutions(records: Iterable[Mapping[str, Any]]) -> list[Solution]:
    return [Solution.of(record) for record in records if CHOSEN not in record]


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
