"""Files of the Hugging Face hub: a model's weights, a GGUF by its quant, a repository's list, files of data sets.

The only door to huggingface_hub. It opens none of the files; weights are fetched as safetensors or GGUF only. Out of
the hub's reach, what its cache holds is served.
"""

import contextlib
import fnmatch
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError, ModelError, first_line, need
from edge_steer.storage.files import cache_folder, write_json

FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
DEFAULT_QUANT = "Q4_K_M"  # llama.cpp's, where a repository holds GGUF files only
_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([\w./-]+))?")
_BESIDE_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")  # as llama.cpp leaves them out
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_LISTED = 12  # files that an error lists


@dataclass(frozen=True)
class Snapshot:
    """A model's Hugging Face files: folder, name (hub id or folder name), and commit if they came from the hub."""

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
    def weights_and_settings(self) -> tuple[str, ...]:
        """The files of its top folder that a model is loaded from."""
        return tuple(n for n in self.files if "/" not in n and any(fnmatch.fnmatch(n, pattern) for pattern in FILES))

    @property
    def ggufs(self) -> tuple[str, ...]:
        """Its GGUF files that are models."""
        return tuple(sorted(name for name in self.files if _is_model(name)))


def parse_hub_id(text: str) -> tuple[str, str | None] | None:
    """ "owner/name:Q4_K_M" as hub id and quant (or file), "owner/name" without one; None for what is no hub id."""
    match = _ID.fullmatch(text)
    return (match[1], match[2]) if match else None


def locate(source: str | Path, revision: str | None = None) -> Snapshot:
    """`source` itself if it is a folder, else the hub's snapshot of it at `revision`, fetched if need be.

    Errors: ModelError for what is neither a folder nor a hub id, or a hub id that cannot be fetched.
    """
    folder = Path(source)
    if folder.is_dir():
        return Snapshot(folder, folder.resolve().name, None)
    parts = None if folder.exists() else parse_hub_id(str(source))
    if parts is None or isinstance(source, Path):
        raise ModelError(f"{source} is neither a folder with Hugging Face files nor a hub id like Qwen/Qwen3-0.6B")
    if parts[1]:
        raise ModelError(f"{source} names a GGUF file; Hugging Face weights are needed here: leave out :{parts[1]}")
    return fetch_weights(list_files(source, revision))


def list_files(repo: str, revision: str | None = None) -> Listing:
    """The files of a model repository, of the hub or where it is out of reach of its cache.

    A commit never changes: its listing is asked for once. Errors: ModelError for a repository that there is not, may
    not be read, or is neither in reach nor cached.
    """
    need("hub")
    if revision and _COMMIT.fullmatch(revision) and (known := _known_listing(repo, revision)):
        return known
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:  # its HTTP client's errors have no base class of its own
        if partial := cached_listing(repo, revision):
            return partial
        raise _unreachable(repo, error) from error
    files = {file.rfilename: file.size for file in info.siblings or ()}
    write_json(_listing_path(repo, str(info.sha)), files)
    return Listing(repo, revision, str(info.sha), files)


def cached_listing(repo: str, revision: str | None) -> Listing | None:
    """What the hub's cache holds of a model repository, if anything; it may be a part."""
    need("hub")
    commit = revision or "main"
    with contextlib.suppress(OSError):
        commit = (_repo_folder(repo) / "refs" / commit).read_text().strip()
    snapshot = _snapshot_folder(repo, commit)
    paths = [path for path in snapshot.rglob("*") if path.is_file()]
    files: dict[str, int | None] = {path.relative_to(snapshot).as_posix(): path.stat().st_size for path in paths}
    return Listing(repo, revision, commit, files) if files else None


def fetch_weights(listing: Listing) -> Snapshot:
    """A repository's Hugging Face files, in the hub's cache; the hub is asked only for what is not there.

    Errors: ModelError for files that cannot be fetched.
    """
    import huggingface_hub

    folder = _snapshot_folder(listing.repo, listing.commit)
    if all((folder / name).is_file() for name in listing.weights_and_settings):
        return Snapshot(folder, listing.repo, listing.commit)
    try:
        fetched = huggingface_hub.snapshot_download(
            listing.repo, revision=listing.revision, allow_patterns=list(FILES), ignore_patterns=["*/*"]
        )
    except Exception as error:  # as above
        raise _unreachable(listing.repo, error) from error
    return Snapshot(Path(fetched), listing.repo, Path(fetched).name)


def fetch_gguf(listing: Listing, file_or_quant: str) -> Path:
    """The one GGUF file of a repository that is of this quant, or has this name; fetched if need be.

    Errors: ModelError for none or several of them, a file in parts, or one that cannot be fetched.
    """
    name = choose_gguf(listing, file_or_quant)
    if (path := _snapshot_folder(listing.repo, listing.commit) / name).is_file():
        return path
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(listing.repo, name, revision=listing.revision))
    except Exception as error:  # as above
        raise _unreachable(f"{name} of {listing.repo}", error) from error


def choose_gguf(listing: Listing, file_or_quant: str) -> str:
    """The name of the GGUF file `fetch_gguf` fetches: upper and lower case are alike. Errors: as `fetch_gguf`."""
    if file_or_quant in listing.ggufs:
        return file_or_quant
    repo, quant = listing.repo, re.compile(rf"(^|[-._/]){re.escape(file_or_quant.lower())}[-./]")
    matches = [name for name in listing.ggufs if quant.search(name.lower())]
    if not listing.ggufs:
        raise ModelError(f"{repo} holds no GGUF model; without :{file_or_quant} its weights are converted")
    if not matches:
        raise ModelError(f"{repo} holds no GGUF of {file_or_quant}; it has {_names(listing.ggufs)}")
    if any(_PART.search(name.removesuffix(".gguf")) for name in matches):
        raise ModelError(
            f"{repo} has {file_or_quant} in {len(matches)} parts; name a quant in one file, or join the parts by "
            "llama-gguf-split --merge"
        )
    if len(matches) > 1:
        raise ModelError(f"{repo} has several GGUF of {file_or_quant}: {_names(matches)}; name one, as {repo}:FILE")
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
            f"cannot fetch {path} of the Hugging Face data set {repo} at {revision[:10]}: {first_line(error)}"
        ) from error


def _is_model(name: str) -> bool:
    last = name.lower().rpartition("/")[2]
    return last.endswith(".gguf") and not any(word in last for word in _BESIDE_MODELS)


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def _repo_folder(repo: str) -> Path:
    """Where the hub's cache keeps a model repository."""
    import huggingface_hub.constants

    return Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _snapshot_folder(repo: str, commit: str) -> Path:
    return _repo_folder(repo) / "snapshots" / commit


def _listing_path(repo: str, commit: str) -> Path:
    folder = cache_folder() / "hub"
    folder.mkdir(exist_ok=True)
    return folder / f"{repo.replace('/', '--')}@{commit}.json"


def _known_listing(repo: str, commit: str) -> Listing | None:
    """The listing of a commit that the hub gave before."""
    with contextlib.suppress(OSError, ValueError):
        return Listing(repo, commit, commit, json.loads(_listing_path(repo, commit).read_text("utf-8")))
    return None


def _unreachable(what: str, error: Exception) -> ModelError:
    import huggingface_hub.errors

    if isinstance(error, huggingface_hub.errors.GatedRepoError):
        return ModelError(
            f"cannot fetch {what} from the Hugging Face hub: it is gated; accept its licence on its page there, then "
            "log in by 'hf auth login' or set HF_TOKEN"
        )
    return ModelError(f"cannot fetch {what} from the Hugging Face hub: {first_line(error)}")
