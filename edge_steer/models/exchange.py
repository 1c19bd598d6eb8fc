"""A model file that runs with what a training made of it in place of its own weights.

Takes a GGUF and changes of weights, one after the other, gives engines. A low-rank adapter is written as a LoRA of
llama.cpp; all weights are written as a GGUF and quantised as the file is. It knows nothing of training.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from edge_steer.adapters.change import LowRank, Weights
from edge_steer.core.backend import EngineOptions, Lora
from edge_steer.core.errors import ModelError
from edge_steer.llama.quantizer import quantize_file
from edge_steer.models.file import ModelFile
from edge_steer.models.load import load
from edge_steer.models.quantize import quantize
from edge_steer.storage.digests import digest

if TYPE_CHECKING:
    from edge_steer.llama.engine import Engine


class Exchange:
    """Runs a model with one change after the other. Close it when done: the files and the last engine go with it."""

    def __init__(self, model: str | Path, options: EngineOptions) -> None:
        """model: a GGUF. Errors: ModelError for options that name an adapter already."""
        if options.lora:
            raise ModelError("a model that runs with an adapter cannot take another; train on the model alone")
        self._model, self._options = ModelFile(Path(model)), options
        self._files = tempfile.TemporaryDirectory()
        self._engine: Engine | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._engine:
            self._engine.close()
        self._files.cleanup()

    def run(self, change: LowRank | Weights) -> "Engine":
        """The model with this change, until the next one is asked for. Errors: ModelError if it does not fit."""
        engine = self._low_rank(change) if isinstance(change, LowRank) else self._whole(change)
        if self._engine:
            self._engine.close()
        self._engine = engine
        return engine

    def check(self, weights: Weights) -> None:
        """Errors: ModelError where these are not the file's weights; see `Weights.check_layout`."""
        weights.check_layout(self._unquantised())

    def write(self, weights: Weights, target: str | Path) -> Path:
        """The model with these weights as a GGUF in float32; its path. Errors: ModelError if they do not fit."""
        return weights.write_gguf(self._unquantised(), target)

    def _low_rank(self, change: LowRank) -> "Engine":
        path = change.write_gguf(Path(self._files.name) / "adapter.gguf")
        return load(self._model.path, options=replace(self._options, lora=Lora(path, digest(path))))

    def _whole(self, change: Weights) -> "Engine":
        path = self.write(change, Path(self._files.name) / "weights.gguf")
        if self._model.quant != "F32":
            whole, path = path, path.with_name("model.gguf")
            quantize_file(whole, path, self._model.quant, self._options.threads)
        return load(path, options=self._options)

    def _unquantised(self) -> Path:
        return quantize(self._model.path, "F32", threads=self._options.threads)
