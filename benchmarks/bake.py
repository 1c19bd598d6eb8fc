"""Is a baked model the steered one? Every architecture that `export --bake` offers, on small random models.

    python benchmarks/bake.py

Prints, for each, what steering all layers changes in the logits at most, and how far the baked file in plain llama.cpp
is from the steered original. Fails where that is more than 2e-5, or an architecture is not tried.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import tiny_models

from edge_steer.adapters.bake import READS_BIAS, bake
from edge_steer.core.backend import EngineOptions
from edge_steer.core.steering import Steering
from edge_steer.core.vector import Array, SteeringVector
from edge_steer.llama.engine import Engine

FAMILIES = (
    "bloom", "falcon-h1", "gpt-neox", "gpt2", "granite", "llama", "llama, biases", "nemotron", "phi2", "starcoder2",
)  # fmt: skip
EXACT = EngineOptions(threads=1, kv_type="f32", flash_attention="off", gpu_layers=0)
TOKENS = tuple(range(5, 45))
TOLERANCE = 2e-5


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        folders = [tiny_models.make(name, folder / name.replace(", ", "-")) for name in FAMILIES]
        rows = [compare(path, folder / "baked.gguf") for path in tiny_models.convert(folders)]
    for name, (architecture, effect, apart) in zip(FAMILIES, rows, strict=True):
        print(f"{name:16}{architecture:12}{effect:10.3f}{apart:12.1e}")
        print(json.dumps({"family": name, "architecture": architecture, "effect": effect, "apart": apart}))
    assert {architecture for architecture, _, _ in rows} == READS_BIAS
    assert all(apart < TOLERANCE < effect for _, effect, apart in rows)


def compare(model: Path, target: Path) -> tuple[str, float, float]:
    """The architecture, what steering changes, and how far the baked model is from the steered one."""
    with Engine.load(model, EXACT) as engine:
        identity, random = engine.model, np.random.default_rng(0)
        directions: dict[int, Array] = {
            layer: (0.3 * random.standard_normal(identity.hidden_size)).astype(np.float32)
            for layer in range(identity.block_count)
        }
        steering = Steering(SteeringVector(directions, identity))
        unsteered, steered = engine.logits(TOKENS, 1), engine.logits(TOKENS, 1, (steering,))
    with Engine.load(bake(steering, model, target), EXACT) as engine:
        baked = engine.logits(TOKENS, 1)
    return str(identity.architecture), _apart(steered, unsteered), _apart(baked, steered)


def _apart(ours: Array, theirs: Array) -> float:
    return float(np.abs(ours - theirs).max())


if __name__ == "__main__":
    main()
