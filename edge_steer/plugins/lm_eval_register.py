"""Makes a plain `lm_eval --model edge_steer` find this package's model, which the harness has no way of its own for.

A .pth file in the environment's site-packages lets every Python process watch for the harness; when its list of models
is loaded, ours is added to it. Nothing of the harness is changed on disk, and nothing is imported before it asks.
"""

import importlib.util
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

WATCHED = "lm_eval.models"
TARGET = "edge_steer.plugins.lm_eval_model:EdgeSteerLM"
FILE = "edge_steer_lm_eval.pth"
LINE = (
    "import importlib.util, sys; importlib.util.find_spec('edge_steer') and "
    "__import__('edge_steer.plugins.lm_eval_register').plugins.lm_eval_register.watch()\n"
)


def register(folder: Path | None = None) -> Path:
    """Write the .pth file. folder: default is this environment's site-packages."""
    path = (folder or _site_packages()) / FILE
    path.write_text(LINE)
    return path


def unregister(folder: Path | None = None) -> bool:
    """Remove the .pth file; False if there was none."""
    path = (folder or _site_packages()) / FILE
    there = path.exists()
    path.unlink(missing_ok=True)
    return there


def watch() -> None:
    """From now on in this process, add our model to the harness's when they are loaded."""
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


class _Watcher:
    """Finds one module, as the finders behind it would, and adds to it once it has run."""

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def add(module: ModuleType) -> None:
                execute(module)
                module.MODEL_MAPPING.setdefault("edge_steer", TARGET)
                module._register_all_models()

            spec.loader.exec_module = add  # type: ignore[method-assign]
        return spec


def _site_packages() -> Path:
    return Path(sysconfig.get_path("purelib"))
