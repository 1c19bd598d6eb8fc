"""A model's Hugging Face files: a local folder as it is, or a snapshot of the hub.

The only door to huggingface_hub. It opens none of the files; weights are fetched as safetensors only.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from edge_steer.errors import ModelError, need

FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")


@dataclass(frozen=True)
class Located:
    """A model's folder, its name (hub id or folder name), and its commit if it came from the hub."""

    folder: Path
    name: str
    commit: str | None


def locate(source: str | Path, revision: str | None = None) -> Located:
    """`source` itself if it is a folder, else the hub's snapshot of it at `revision`, fetched if need be.

    Errors: ModelError for what is neither a folder nor a hub id, or a hub id that cannot be fetched.
    """
    folder = Path(source)
    if folder.is_dir():
        return Located(folder, folder.resolve().name, None)
    if isinstance(source, Path) or folder.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        raise ModelError(f"{source} is neither a folder with Hugging Face files nor a hub id like Qwen/Qwen3-0.6B")
    need("extract")
    import huggingface_hub

    try:
        fetched = huggingface_hub.snapshot_download(
            source, revision=revision, allow_patterns=list(FILES), ignore_patterns=["*/*"]
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"cannot fetch {source} from the Hugging Face hub: {why}") from error
    return Located(Path(fetched), source, Path(fetched).name)
