"""The training of tests/training/test_rloo.py, to be killed: python train_until_killed.py GGUF MODEL FOLDER."""

import sys
from dataclasses import replace
from pathlib import Path

from edge_steer.core.backend import EngineOptions
from edge_steer.models.load import load
from edge_steer.tasks.load import load_task
from edge_steer.training.rloo import train_rloo
from edge_steer.training.settings import RlooSettings
from edge_steer.training.trainee import Trainee

if __name__ == "__main__":
    gguf, model, folder = map(Path, sys.argv[1:])
    options = EngineOptions(threads=1)
    with load(gguf, options=options) as engine, load(model, runtime="torch", options=options) as reference:
        leaps = load_task("wordproblems-leaps", protocol="bias-only", split="train", limit=499)
        samples = tuple(leaps.samples[place] for place in (98, 498, 2))
        task = replace(leaps, samples=samples).with_settings(max_tokens=190)
        settings = RlooSettings(steps=3, prompts=2, generations=3, max_tokens=190, learning_rate=0.1)
        train_rloo(Trainee(engine, reference), task, settings, folder)
