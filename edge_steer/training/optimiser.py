"""Adam on the trained vector: warm-up, clipping, and a state that outlives a kill.

Takes an adapter with a gradient, makes a step; writes and reads its state as .npz, without pickles.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from edge_steer.core.errors import EdgeSteerError, first_line
from edge_steer.storage.files import readable, replacing
from edge_steer.training.adapter import VectorAdapter
from edge_steer.training.settings import RlooSettings

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Update:
    """What a step did. gradient_norm: before clipping. rate: the learning rate."""

    gradient_norm: float
    clipped: bool
    rate: float


class Optimiser:
    """AdamW without weight decay, betas 0.9 and 0.999. `step` counts the steps made."""

    def __init__(self, adapter: VectorAdapter, settings: RlooSettings) -> None:
        self.step = 0
        self._values, self._settings = adapter.values, settings
        self._adam = torch.optim.AdamW([self._values], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    def update(self) -> Update:
        """One step along the gradient that the values have. Errors: EdgeSteerError for one that is not finite."""
        norm = float(torch.nn.utils.clip_grad_norm_([self._values], self._settings.clip))
        if not math.isfinite(norm):
            raise EdgeSteerError(f"the gradient of step {self.step + 1} is not finite; lower the learning rate")
        rate = self._settings.rate(self.step)
        self._adam.param_groups[0]["lr"] = rate
        self._adam.step()
        self.step += 1
        return Update(norm, norm > self._settings.clip, rate)

    def save(self, path: str | Path) -> None:
        """The values, Adam's moments and the step: the whole file or none."""
        state = self._adam.state.get(self._values, {})
        moments = {name: state[name].cpu().numpy() for name in MOMENTS if name in state}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, step=self.step, values=self._values.detach().cpu().numpy(), **moments)

    def restore(self, path: str | Path) -> None:
        """Go on from what `save` wrote. Errors: EdgeSteerError for anything else."""
        try:
            with np.load(readable(path, "the state of a training"), allow_pickle=False) as state:
                arrays = {name: torch.from_numpy(state[name]) for name in ("values", *MOMENTS)}
                self.step = int(state["step"])
            with torch.no_grad():
                self._values.copy_(arrays["values"])
            self._adam.state[self._values] = {
                "step": torch.tensor(float(self.step)),
                **{name: arrays[name].to(self._values.device) for name in MOMENTS},
            }
        except (KeyError, ValueError, OSError, EOFError, RuntimeError, BadZipFile) as error:
            raise EdgeSteerError(
                f"{path} is no state of this training: {first_line(error)}; delete the folder to begin anew"
            ) from None
