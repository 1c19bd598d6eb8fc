"""Low-rank adapters put to use: which file or folder, at which scale.

Takes what a user names, gives a Lora, whose digest says what results depend on; of several, what each request chose.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from edge_steer.adapters import gguf_lora, peft_folder
from edge_steer.core.backend import Lora
from edge_steer.core.errors import ModelError
from edge_steer.storage.digests import digest


def choose_lora(source: str | Path, scale: float = 1.0) -> Lora:
    """A GGUF LoRA or a folder of PEFT, at a scale; 0 leaves the model as it is.

    Errors: ModelError for what is neither, an adapter that cannot be honoured, or a scale that is not finite.
    """
    path = Path(source)
    if path.is_dir():
        return Lora(path, peft_folder.read(path).digest, scale)
    gguf_lora.read(path)
    return Lora(path, digest(path), scale)


class NumberedLoras:
    """The adapters of a running server, which requests name by their number: 0, 1, and so on.

    default: what requests run with that name none, first all of them at the scales they came with.
    """

    def __init__(self, loras: Sequence[Lora]) -> None:
        self._loras = tuple(loras)
        self.default = self._loras

    def __bool__(self) -> bool:
        return bool(self._loras)

    def scaled(self, scales: Iterable[tuple[int, float]]) -> tuple[Lora, ...]:
        """All of them, those with these numbers at these scales, the others at 0.

        Errors: ModelError for a number that is not there.
        """
        chosen = dict(scales)
        if strange := [number for number in chosen if not 0 <= number < len(self._loras)]:
            there = f"there are 0 to {len(self._loras) - 1}" if self._loras else "this server has none"
            raise ModelError(f"no adapter {strange[0]}; {there}")
        return tuple(replace(lora, scale=chosen.get(number, 0.0)) for number, lora in enumerate(self._loras))


def listed(loras: Sequence[Lora]) -> list[dict[str, object]]:
    """Adapters as clients are told of them: number, file name, scale and digest."""
    return [
        {"id": number, "path": lora.path.name, "scale": lora.scale, "digest": lora.digest}
        for number, lora in enumerate(loras)
    ]
