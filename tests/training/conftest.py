"""Graders that start once, and problems that the bundled model solves in some of its answers and not in others."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.task import Task

UNSURE = (98, 498, 2)  # of the training split
LONGEST = 190


@pytest.fixture(scope="session")
def graders() -> Iterator[Graders]:
    with Graders() as graders:
        yield graders


@pytest.fixture(scope="session")
def task() -> Task:
    leaps = load_task("wordproblems-leaps", protocol="bias-only", split="train", limit=max(UNSURE) + 1)
    return replace(leaps, samples=tuple(leaps.samples[place] for place in UNSURE)).with_settings(max_tokens=LONGEST)
