"""What a MODEL names, and the hub's files: against a hub of our own, in reach and out of it."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hub_server import COMMIT, REPOS, Hub, printed, serving
from paths import ABACUS

from edge_steer.core.errors import EdgeSteerError, ModelError
from edge_steer.models import convert, sources
from edge_steer.storage import hub
from edge_steer.storage.digests import digest
from edge_steer.storage.hub import Listing, Snapshot

SHOW = """\
from edge_steer.core import errors
from edge_steer.core.progress import Progress
from edge_steer.models import quantize, sources
from edge_steer.storage import hub
class Printed(Progress):
    def note(self, text): print(text)
def show(call):
    try: print(call())
    except errors.EdgeSteerError as error: print(error)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with serving(tmp_path_factory.mktemp("hub")) as environment:
        yield environment


def run(environment: Mapping[str, str], *lines: str) -> list[str]:
    """What the lines print; an error of ours is its one line."""
    shown = "".join(f"show(lambda: {line})\n" for line in lines)
    return printed(environment, SHOW + shown)


def test_files_of_the_hub_are_found_by_id_and_quant(environment: dict[str, str]) -> None:
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    (absent,) = run(offline, "sources.find('we/abacus-GGUF:F16')")
    assert absent.startswith("cannot fetch we/abacus-GGUF from the Hugging Face hub: ")
    note, by_quant, by_name, default, weights, folder = run(
        environment,
        "sources.find('we/abacus-GGUF:f16', progress=Printed())",
        "sources.find('we/abacus-GGUF:abacus-F16.gguf')",
        "sources.find('we/abacus-GGUF')",
        "sources.find('we/abacus').folder",
        "sources.weights('we/abacus').folder",
    )
    assert note == f"abacus-F16.gguf of we/abacus-GGUF at {COMMIT[:10]}, 7.37 MB"
    assert digest(Path(by_quant)) == digest(ABACUS / "abacus-F16.gguf")
    assert f"snapshots/{COMMIT}" in by_quant
    assert by_name == by_quant == default  # Q4_K_M is the default, and F16 what there is to make it from
    assert weights == folder
    assert {path.name for path in Path(folder).iterdir()} == REPOS["we/abacus"].keys()
    assert run(
        offline,
        "sources.find('we/abacus-GGUF:F16')",
        "sources.find('we/abacus').folder",
        f"sources.weights('we/abacus', '{COMMIT}').folder",
    ) == [by_quant, folder, folder]


def test_a_quant_that_the_hub_has_not_is_made_from_what_it_has(environment: dict[str, str]) -> None:
    made, there, refused = run(
        environment,
        "quantize.gguf_for('we/abacus-GGUF', 'Q8_0', threads=1)",
        "quantize.gguf_for('we/abacus-GGUF', 'F16')",
        "quantize.gguf_for('we/abacus-GGUF:Q8_0')",
    )
    assert Path(made).name.startswith("abacus-Q8_0-")
    assert there.endswith("abacus-F16.gguf")
    assert refused == "we/abacus-GGUF holds no GGUF of Q8_0; it has abacus-F16.gguf"


def test_what_the_hub_will_not_give_is_said_in_one_line(environment: dict[str, str]) -> None:
    gated, unknown, weights, quant = run(
        environment,
        "sources.find('we/gated')",
        "sources.find('we/unknown:Q4_0')",
        "sources.weights('we/abacus:Q4_0')",
        "sources.find('we/abacus:Q4_0')",
    )
    assert gated.startswith("cannot fetch we/gated from the Hugging Face hub: it is gated; accept its licence")
    assert unknown.startswith("cannot fetch we/unknown from the Hugging Face hub: 404")
    assert weights == "we/abacus:Q4_0 names a GGUF file; Hugging Face weights are needed here: leave out :Q4_0"
    assert quant == "we/abacus holds no GGUF model; without :Q4_0 its weights are converted"


def test_local_paths_are_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sources.find("owner/absent.gguf") == Path("owner/absent.gguf")
    (tmp_path / "owner").mkdir()
    shutil.copy(ABACUS / "recipe.toml", tmp_path / "owner" / "model")
    assert sources.find("owner/model") == Path("owner/model")
    (tmp_path / "owner" / "weights").mkdir()
    assert sources.find("owner/weights") == Snapshot(Path("owner/weights"), "weights", None)
    assert sources.weights("owner/weights").folder == Path("owner/weights")
    assert sources.find(ABACUS) == ABACUS / "abacus-F16.gguf"
    assert sources.weights(ABACUS).folder == ABACUS
    for other in ("word", "a/b/c:Q4_0", "../x"):
        with pytest.raises(ModelError, match="is neither a GGUF file, nor a folder"):
            sources.find(other)


def test_a_folder_with_a_recipe_stands_for_its_source(environment: dict[str, str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    text = 'name = "m"\nsource = "we/abacus"\nlayers = "2-3"\nquants = ["Q8_0"]\n'
    recipe.write_text(text + f'revision = "{COMMIT}"\n')
    there = f"sources.weights({str(tmp_path)!r})"
    same = f"sources.find({str(tmp_path)!r}).folder"
    commit, folder, again = run(environment, f"{there}.commit", f"{there}.folder", same)
    assert (commit, again) == (COMMIT, folder)
    assert (Path(folder) / "model.safetensors").is_file()
    recipe.write_text(text)
    assert run(environment, f"{there}.commit") == [COMMIT]  # main, for it is not pinned
    recipe.write_text("name = 1")
    with pytest.raises(EdgeSteerError, match="is missing"):
        sources.weights(tmp_path)


@pytest.mark.parametrize(("revision", "requests"), [("None", 1), (f"'{COMMIT}'", 0)])
def test_what_is_cached_costs_one_request_or_none_for_a_commit(
    environment: dict[str, str], revision: str, requests: int
) -> None:
    for call in (
        f"sources.find('we/abacus', revision={revision})",
        f"sources.find('we/abacus-GGUF:F16', revision={revision})",
    ):
        first = run(environment, call)
        Hub.requests.clear()
        assert run(environment, call) == first
        assert len([path for path in Hub.requests if "/we/" in path]) == requests


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="bytes read are counted by Linux's /proc")
def test_what_is_made_from_a_cached_hub_model_is_found_without_reading_its_weights(environment: dict[str, str]) -> None:
    if not convert.converter_folder().is_dir():
        pytest.skip("llama.cpp's converter is not in the cache; edge-steer convert --fetch-converter fetches it")
    cache = Path(environment["EDGE_STEER_CACHE"])
    cache.mkdir(exist_ok=True)
    (cache / convert.converter_folder().name).symlink_to(convert.converter_folder(), target_is_directory=True)
    made = f"quantize.gguf_for('we/abacus', revision='{COMMIT}')"
    bytes_read = "int(open('/proc/self/io').readline().removeprefix('rchar: '))"
    first, again, before, _, after = run(environment, made, made, bytes_read, made, bytes_read)
    assert first == again
    assert int(after) - int(before) < (ABACUS / "model.safetensors").stat().st_size / 100


def test_a_snapshot_that_lacks_a_file_is_fetched_again(environment: dict[str, str]) -> None:
    call = f"sources.weights('we/abacus', '{COMMIT}').folder"
    (folder,) = run(environment, call)
    (Path(folder) / "tokenizer.json").unlink()
    assert run(environment, call) == [folder]
    assert (Path(folder) / "tokenizer.json").is_file()


def listing(*names: str) -> Listing:
    return Listing("o/n", None, COMMIT, dict.fromkeys(names))


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (("a-Q4_K_M.gguf", "a-IQ4_K_M.gguf", "a-Q4_K_S.gguf"), "q4_k_m", "a-Q4_K_M.gguf"),
        (("a-BF16.gguf", "a-f16.gguf"), "F16", "a-f16.gguf"),
        (("a.Q8_0.gguf", "a.Q8_0_L.gguf"), "Q8_0", "a.Q8_0.gguf"),
        (("a-UD-Q4_K_XL.gguf",), "UD-Q4_K_XL", "a-UD-Q4_K_XL.gguf"),
        (("a-UD-Q4_K_XL.gguf",), "Q4_K_XL", "a-UD-Q4_K_XL.gguf"),
        (("Q4_0/a.gguf", "mmproj-Q4_0.gguf"), "Q4_0", "Q4_0/a.gguf"),
        (("a-Q4_0.gguf", "a-Q4_0.imatrix.gguf", "a-Q4_0-v2.gguf"), "a-Q4_0.gguf", "a-Q4_0.gguf"),
    ],
)
def test_a_quant_is_matched_in_the_names(names: tuple[str, ...], wanted: str, found: str) -> None:
    assert hub.choose_gguf(listing(*names), wanted) == found


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("config.json",), "o/n holds no GGUF model"),
        (("mmproj-Q4_0.gguf",), "o/n holds no GGUF model"),
        (("a-Q8_0.gguf", "b.gguf"), "o/n holds no GGUF of Q4_0; it has a-Q8_0.gguf, b.gguf"),
        (("a-Q4_0.gguf", "b-Q4_0.gguf"), "several GGUF of Q4_0: a-Q4_0.gguf, b-Q4_0.gguf; name one, as o/n:FILE"),
        (("a-Q4_0-00001-of-00002.gguf", "a-Q4_0-00002-of-00002.gguf"), "o/n has Q4_0 in 2 parts"),
        (tuple(f"{i:02}.gguf" for i in range(20)), "11.gguf and 8 more"),
    ],
)
def test_no_file_is_guessed(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        hub.choose_gguf(listing(*names), "Q4_0")
