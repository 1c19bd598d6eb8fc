"""Exit status 0 if llama.cpp can run a quantised model with its weights repacked; run in a process of its own.

On CPUs with AMX llama.cpp multiplies repacked weights by AMX tiles. GCC before 13 drops the stores of the tile
configuration, so a wheel built by it faults at the first batch: what `pip install` makes on Debian 12, for one.
"""

import sys
from pathlib import Path

from edge_steer.llama.context import LlamaContext
from edge_steer.llama.model import LlamaModel

if __name__ == "__main__":
    with LlamaModel(Path(sys.argv[1]), repack=True) as model, LlamaContext(model, length=64) as context:
        context.prefill([0] * 32, 0, 0)
