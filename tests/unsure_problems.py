"""Problems that the bundled model solves in some of its answers and not in others, for trainings of a step or two."""

from dataclasses import replace

from edge_steer.tasks.load import load_task
from edge_steer.tasks.task import Task

PLACES = (98, 498, 2)  # in the training split
LONGEST = 190


def unsure_task() -> Task:
    leaps = load_task("wordproblems-leaps", protocol="bias-only", split="train", limit=max(PLACES) + 1)
    return replace(leaps, samples=tuple(leaps.samples[place] for place in PLACES)).with_settings(max_tokens=LONGEST)
