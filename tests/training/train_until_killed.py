"""The training of tests/training/test_rloo.py, to be killed: python train_until_killed.py GGUF MODEL FOLDER."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from unsure_problems import unsure_task

from edge_steer.core.backend import EngineOptions
from edge_steer.models.load import load
from edge_steer.training.rloo import train_rloo
from edge_steer.training.settings import RlooSettings
from edge_steer.training.trainee import Trainee

if __name__ == "__main__":
    gguf, model, folder = map(Path, sys.argv[1:])
    options = EngineOptions(threads=1)
    with load(gguf, options=options) as engine, load(model, runtime="torch", options=options) as reference:
        settings = RlooSettings(steps=2, prompts=2, generations=3, max_tokens=190, learning_rate=1.0)
        train_rloo(Trainee(engine, reference), unsure_task(), settings, folder)
