"""Damaged vector files: every one is read or refused in a line, and never anything else.

Good files of each kind are changed at random (bytes, lengths, slices, ends; the members of zip files from inside too,
so that checksums hold) and read. A count is printed for each kind: how many were read, how many refused, the longest
time of one in milliseconds of CPU. An exception that is not an EdgeSteerError is a crash: its traceback is printed with
the seed, the file is kept, and the status is 1.

    python benchmarks/fuzz.py --count 100000
"""

import io
import json
import random
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import gguf
import numpy as np
import safetensors.numpy
from rich.console import Console
from rich.table import Table

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.vector import ModelIdentity, SteeringVector
from edge_steer.vectors import gguf_writer, native, read

GOLDEN = Path(__file__).parents[1] / "tests" / "vectors" / "golden"
NUMBERS = [0, 1, 2, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
SPLICES = [b"\x80\x02", b"cos\nsystem\n", b"\x8d", b"\x8b\xff\xff\xff\x7f", b"(", b"t", b"R", b"b", b"q\x00", b"}"]
SPLICES += [b"[", b"{", b'"F32"', b"direction.", b"NaN", b"\x93NUMPY", b"PK\x03\x04", b"PK\x01\x02", b"GGUF"]


@click.command(help=__doc__)
@click.option("--count", default=100_000, show_default=True, help="Changed files of each kind.")
@click.option("--seed", default=0, show_default=True)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(read.FORMATS)), help="[default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of a table.")
def main(count: int, seed: int, kinds: tuple[str, ...], as_json: bool) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in kinds or read.FORMATS:
            found[kind] = fuzz(kind, count, seed, Path(scratch))
    if as_json:
        click.echo(json.dumps(found))
    else:
        table = Table("kind", "read", "refused", "crashes", "slowest, ms")
        for kind, row in found.items():
            table.add_row(kind, *(f"{row[key]:g}" for key in ("read", "refused", "crashes", "slowest")))
        Console(width=None if Console().is_terminal else 100).print(table)
    sys.exit(any(row["crashes"] for row in found.values()))


def fuzz(kind: str, count: int, seed: int, scratch: Path) -> dict[str, float]:
    rng = random.Random(f"{kind} {seed}")
    seeds = SEEDS[kind](scratch)
    path = scratch / "changed"
    counts: Counter[str] = Counter()
    slowest = 0.0
    for number in range(count):
        good = rng.choice(seeds)
        inside = good[:4] == b"PK\x03\x04" and rng.random() < 0.7
        content = change_inside(rng, good) if inside else change(rng, good)
        path.write_bytes(content)
        began = time.process_time()
        try:
            read.read(path, convention=rng.choice((None, "block", "block+1")))
            counts["read"] += 1
        except EdgeSteerError as error:
            counts["refused"] += 1
            if "\n" in str(error):
                counts["crashes"] += 1
                print(f"{kind} {number}: an error of several lines: {error}", file=sys.stderr)
        except BaseException:
            if isinstance(sys.exc_info()[1], KeyboardInterrupt):
                raise
            counts["crashes"] += 1
            kept = Path(tempfile.gettempdir(), f"fuzz-{kind}-{seed}-{number}")
            kept.write_bytes(content)
            print(f"{kind} {number}, kept as {kept}:\n{traceback.format_exc()}", file=sys.stderr)
        slowest = max(slowest, time.process_time() - began)
    return {key: counts[key] for key in ("read", "refused", "crashes")} | {"slowest": round(slowest * 1000, 1)}


def change(rng: random.Random, content: bytes) -> bytes:
    """One to four changes; small ones are likelier, so that files get past the first checks."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(8):
            case 0 | 1 if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
            case 2 if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 3:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice(NUMBERS) & (256**width - 1)
                data[at : at + width] = number.to_bytes(width, rng.choice(("little", "little", "big")))
            case 4:
                del data[at : at + rng.choice((1, 1, 2, 8, 64))]
            case 5:
                data[at:at] = rng.choice(SPLICES)
            case 6:
                start = rng.randrange(len(data) + 1)
                data[at:at] = data[start : start + rng.choice((1, 4, 32, 256))]
            case 7:
                del data[at if rng.random() < 0.3 else len(data) :]
    return bytes(data)


def change_inside(rng: random.Random, content: bytes) -> bytes:
    """A zip file of which one member is changed, mostly the pickle, or its name is, and all checksums are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in members if name.endswith(".pkl")]
    chosen = rng.choice(pickles if pickles and rng.random() < 0.8 else list(members))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, data in members.items():
            archive.writestr(name, change(rng, data) if name == chosen else data)
    return made.getvalue()


def vectors() -> Iterator[SteeringVector]:
    rng = np.random.default_rng(0)
    for blocks, width in ((4, 4), (12, 16)):
        model = ModelIdentity("tiny", "qwen2", width, blocks, "abc")
        directions = {layer: rng.standard_normal(width).astype(np.float32) for layer in range(1, blocks)}
        vector = SteeringVector(directions, model, "mean-difference", "last", 7, "d" * 64, provenance=("a", "b"))
        yield vector.tuned([1, 3], 0.5, "generated") if blocks > 4 else vector


def gguf_seeds(scratch: Path) -> list[bytes]:
    contents = [(GOLDEN / "peers" / name).read_bytes() for name in ("repeng.gguf", "cvector.gguf")]
    for vector in vectors():
        contents.append(gguf_writer.write(vector, scratch / "seed.gguf").path.read_bytes())
        writer = gguf.GGUFWriter(scratch / "seed.gguf", "controlvector")
        writer.add_string("controlvector.method", "diffmean")
        writer.add_array("controlvector.names", ["a", "b"])
        for kind in (np.float16, np.float64):
            writer.add_tensor(f"direction.{int(kind == np.float64)}", vector.directions[1].astype(kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        contents.append((scratch / "seed.gguf").read_bytes())
    return contents


def safetensors_seeds(scratch: Path) -> list[bytes]:
    contents = []
    for vector in vectors():
        native.save(vector, scratch / "seed")
        contents.append((scratch / "seed").read_bytes())
        named = {f"layer.{layer}": direction.astype(np.float16) for layer, direction in vector.directions.items()}
        contents.append(safetensors.numpy.save(named))
    return contents


def torch_seeds(_scratch: Path) -> list[bytes]:
    import torch

    contents = [(GOLDEN / "peers" / "steering_vectors.pt").read_bytes()]
    for vector in vectors():
        tensors = {layer: torch.tensor(direction) for layer, direction in vector.directions.items()}
        for held in (
            tensors,
            torch.stack(list(tensors.values())).bfloat16(),
            {f"l.{k}": v for k, v in tensors.items()},
        ):
            file = io.BytesIO()
            torch.save(held, file)
            contents.append(file.getvalue())
    return contents


def npz_seeds(_scratch: Path) -> list[bytes]:
    contents = []
    for vector in vectors():
        file = io.BytesIO()
        np.savez(file, **{str(layer): direction for layer, direction in vector.directions.items()})
        contents.append(file.getvalue())
        file = io.BytesIO()
        np.savez_compressed(file, vectors=np.stack(list(vector.directions.values())))
        contents.append(file.getvalue())
    return contents


SEEDS: dict[str, Callable[[Path], list[bytes]]] = {
    "gguf": gguf_seeds,
    "safetensors": safetensors_seeds,
    "pt": torch_seeds,
    "npz": npz_seeds,
}

if __name__ == "__main__":
    main()
