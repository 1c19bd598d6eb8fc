"""Files of the Hugging Face hub: a model's weights, a GGUF by its quant, a repository's list, files of data sets.

The only door to huggingface_hub. It opens none of the files; weights are fetched as safetensors or GGUF only. Out of
the hub's reach, what its cache holds is served.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError, ModelError, need

FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
DEFAULT_QUANT = "Q4_K_M"  # llama.cpp's, where a repository holds GGUF files only
_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([\w./-]+))?")
_BESIDE_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")  # as llama.cpp leaves them out
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_SHOWN = 12  # files that an error lists


@dataclass(frozen=True)
class Located:
    """A model's folder, its name (hub id or folder name), and its commit if it came from the hub."""

    folder: Path
    name: str
    commit: str | None


@dataclass(frozen=True)
class Listing:
    """What a repository holds at a commit: names of files with their sizes in bytes, None where not known.

    revision: what was asked for, None for its main branch.
    """

    repo: str
    revision: str | None
    commit: str
    files: Mapping[str, int | None]

    @property
    def weights(self) -> tuple[str, ...]:
        """Its .safetensors files, of the top folder."""
        return tuple(name for name in self.files if name.endswith(".safetensors") and "/" not in name)

    @property
    def ggufs(self) -> tuple[str, ...]:
        """Its GGUF files that are models."""
        return tuple(sorted(name for name in self.files if _is_model(name)))


def split(source: str) -> tuple[str, str | None] | None:
    """ "owner/name:Q4_K_M" as hub id and quant (or file), "owner/name" without one; None for what is no hub id."""
    found = _ID.fullmatch(source)
    return (found[1], found[2]) if found else None


def locate(source: str | Path, revision: str | None = None) -> Located:
    """`source` itself if it is a folder, else the hub's snapshot of it at `revision`, fetched if need be.

    Errors: ModelError for what is neither a folder nor a hub id, or a hub id that cannot be fetched.
    """
    folder = Path(source)
    if folder.is_dir():
        return Located(folder, folder.resolve().name, None)
    named = None if folder.exists() else split(str(source))
    if named is None or isinstance(source, Path):
        raise ModelError(f"{source} is neither a folder with Hugging Face files nor a hub id like Qwen/Qwen3-0.6B")
    if named[1]:
        raise ModelError(f"{source} names a GGUF file; Hugging Face weights are needed here: leave out :{named[1]}")
    need("hub")
    import huggingface_hub
    import huggingface_hub.errors

    try:
        fetched = huggingface_hub.snapshot_download(
            source, revision=revision, allow_patterns=list(FILES), ignore_patterns=["*/*"]
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise _unreachable(source, error) from error
    return Located(Path(fetched), source, Path(fetched).name)


def listing(repo: str, revision: str | None = None) -> Listing:
    """The files of a model repository, of the hub or where it is out of reach of its cache.

    Errors: ModelError for a repository that there is not, may not be read, or is neither in reach nor cached.
    """
    need("hub")
    import huggingface_hub

    try:
        found = huggingface_hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
        return Listing(repo, revision, str(found.sha), {file.rfilename: file.size for file in found.siblings or ()})
    except Exception as error:  # its HTTP client's errors have no base class of its own
        kept = cached(repo, revision)
        if kept is None:
            raise _unreachable(repo, error) from error
        return kept


def cached(repo: str, revision: str | None) -> Listing | None:
    """What the hub's cache holds of a model repository, if anything; it may be a part."""
    need("hub")
    import huggingface_hub.constants

    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    commit = revision or "main"
    with contextlib.suppress(OSError):
        commit = (folder / "refs" / commit).read_text().strip()
    snapshot = folder / "snapshots" / commit
    paths = [path for path in snapshot.rglob("*") if path.is_file()]
    files: dict[str, int | None] = {path.relative_to(snapshot).as_posix(): path.stat().st_size for path in paths}
    return Listing(repo, revision, commit, files) if files else None


def gguf(held: Listing, wanted: str) -> Path:
    """The one GGUF file of a repository that is of this quant, or has this name; fetched if need be.

    Errors: ModelError for none or several of them, a file in parts, or one that cannot be fetched.
    """
    name = pick(held, wanted)
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(held.repo, name, revision=held.revision))
    except Exception as error:  # as above
        raise _unreachable(f"{name} of {held.repo}", error) from error


def pick(held: Listing, wanted: str) -> str:
    """The name of the GGUF file `gguf` fetches: upper and lower case are alike. Errors: as `gguf`."""
    if wanted in held.ggufs:
        return wanted
    quant = re.compile(rf"(^|[-._/]){re.escape(wanted.lower())}[-./]")
    matches = [name for name in held.ggufs if quant.search(name.lower())]
    if not held.ggufs:
        raise ModelError(f"{held.repo} holds no GGUF model; without :{wanted} its weights are converted")
    if not matches:
        raise ModelError(f"{held.repo} holds no GGUF of {wanted}; it has {_shown(held.ggufs)}")
    if any(_PART.search(name.removesuffix(".gguf")) for name in matches):
        raise ModelError(
            f"{held.repo} has {wanted} in {len(matches)} parts; name a quant in one file, or join the parts by "
            "llama-gguf-split --merge"
        )
    if len(matches) > 1:
        raise ModelError(f"{held.repo} has several GGUF of {wanted}: {_shown(matches)}; name one, as {held.repo}:FILE")
    return matches[0]


def dataset_file(repo: str, revision: str, path: str) -> Path:
    """One file of a data set at a full commit hash, from the hub's cache or the hub. Errors: EdgeSteerError."""
    need("evaluate")
    import huggingface_hub

    with contextlib.suppress(OSError, ValueError):
        return Path(
            huggingface_hub.hf_hub_download(repo, path, repo_type="dataset", revision=revision, local_files_only=True)
        )
    try:
        # offline this fails at once, where the download alone would retry for half a minute
        huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(repo, path, repo_type="dataset", revision=revision)
        )
        return Path(huggingface_hub.hf_hub_download(repo, path, repo_type="dataset", revision=revision))
    except Exception as error:  # its HTTP client's errors have no base class of its own
        raise EdgeSteerError(
            f"cannot fetch {path} of the Hugging Face data set {repo} at {revision[:10]}: {_why(error)}"
        ) from error


def _is_model(name: str) -> bool:
    last = name.lower().rpartition("/")[2]
    return last.endswith(".gguf") and not any(word in last for word in _BESIDE_MODELS)


def _shown(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _unreachable(what: str, error: Exception) -> ModelError:
    import huggingface_hub.errors

    if isinstance(error, huggingface_hub.errors.GatedRepoError):
        return ModelError(
            f"cannot fetch {what} from the Hugging Face hub: it is gated; accept its licence on its page there, then "
            "log in by 'hf auth login' or set HF_TOKEN"
        )
    return ModelError(f"cannot fetch {what} from the Hugging Face hub: {_why(error)}")


def _why(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
