"""Adam on what is trained: its schedule, clipping, and a state that outlives a kill.

Takes parameters with a gradient, makes a step; writes and reads its state as .npz, without pickles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from edge_steer.core.errors import EdgeSteerError, first_line
from edge_steer.storage.files import readable, replacing
from edge_steer.training.settings import Schedule

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Update:
    """What a step did. gradient_norm: before clipping. rate: the learning rate."""

    gradient_norm: float
    clipped: bool
    rate: float


class Optimiser:
    """AdamW without weight decay, betas 0.9 and 0.999. `step` counts the steps made."""

    def __init__(self, parameters: Sequence[Parameter], schedule: Schedule) -> None:
        self.step = 0
        self._parameters, self._schedule = parameters, schedule
        self._adam = torch.optim.AdamW(parameters, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    @property
    def moment_bytes(self) -> int:
        """What Adam's moments take by now."""
        moments = [state[name] for state in self._adam.state.values() for name in MOMENTS]
        return sum(moment.numel() * moment.element_size() for moment in moments)

    def update(self) -> Update:
        """One step along the gradient of the parameters. Errors: EdgeSteerError for one that is not finite."""
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._schedule.clip))
        if not math.isfinite(norm):
            raise EdgeSteerError(f"the gradient of step {self.step + 1} is not finite; lower the learning rate")
        rate = self._schedule.rate(self.step)
        self._adam.param_groups[0]["lr"] = rate
        self._adam.step()
        self.step += 1
        return Update(norm, norm > self._schedule.clip, rate)

    def save(self, path: str | Path) -> None:
        """The values, Adam's moments and the step, each one behind the other: the whole file or none."""
        parts = {"values": self._parameters}
        if self._adam.state:
            parts |= {name: [self._adam.state[one][name] for one in self._parameters] for name in MOMENTS}
        flat = {name: torch.cat([part.detach().flatten() for part in each]).cpu() for name, each in parts.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            arrays: dict[str, Any] = {name: values.numpy() for name, values in flat.items()}
            np.savez(file, step=self.step, **arrays)

    def restore(self, path: str | Path) -> None:
        """Go on from what `save` wrote. Errors: EdgeSteerError for anything else."""
        try:
            with np.load(readable(path, "the state of a training"), allow_pickle=False) as state:
                parts = {name: self._parts(state[name]) for name in ("values", *MOMENTS)}
                self.step = int(state["step"])
            for index, parameter in enumerate(self._parameters):
                parameter.data.copy_(parts["values"][index])
                moments = {name: parts[name][index].to(parameter.device).clone() for name in MOMENTS}
                self._adam.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}
        except (KeyError, ValueError, OSError, EOFError, RuntimeError, BadZipFile) as error:
            raise EdgeSteerError(
                f"{path} is no state of this training: {first_line(error)}; delete the folder to begin anew"
            ) from None

    def _parts(self, values: Any) -> list[Tensor]:
        """Of one array for all parameters, each one's part."""
        parts = torch.split(torch.from_numpy(values).flatten(), [one.numel() for one in self._parameters])
        return [part.view(one.shape) for part, one in zip(parts, self._parameters, strict=True)]
