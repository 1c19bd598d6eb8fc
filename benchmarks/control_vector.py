"""An exported control vector in llama.cpp's own tools: the file is taken, and means there what it means here.

likelihoods   llama-perplexity saves the unsteered model's log-probabilities and prints the KL divergence of the steered
              model from them; edge-steer computes the same numbers from its own logits on the same tokens, once from
              its own unsteered logits ("edge-steer") and once from the tool's file ("on the tool's base"). The same
              direction one layer off is shown too, as a measure of what a difference would look like.
texts         llama-completion's greedy texts, unsteered and steered, against edge-steer's.
direction.0   a file with this tensor is skipped by llama.cpp, which runs on unsteered; edge-steer reads it.

All in the phase "all", the only one those tools have; F32 KV cache, no flash attention. On an F32 model the numbers
agree to what the tool prints; on F16 and quantised ones llama.cpp itself differs a little with the batch size.
"""

import itertools
import json
import random
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import click
import gguf
import llama_tools
import numpy as np
import numpy.typing as npt
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from rich.console import Console
from rich.table import Table

from edge_steer.core.backend import EngineOptions, Request, available_cores
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.stats import log_softmax
from edge_steer.core.steering import Steering
from edge_steer.core.vector import SteeringVector
from edge_steer.llama.engine import Engine
from edge_steer.models import quantize
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.tasks import wordproblems
from edge_steer.vectors import read

Floats = npt.NDArray[np.float64]

ROOT = Path(__file__).parents[1]
CHUNK = 256
CHUNKS = 8
MAX_TOKENS = 200
SETTINGS = ("-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-warmup", "--no-repack")


@click.command(help=__doc__)
@click.argument("vector", type=click.Path(path_type=Path), default=ROOT / "export" / "abacus" / "dense" / "vector.gguf")
@click.option("--model", default=ROOT / "models" / "abacus", type=click.Path(exists=True, path_type=Path))
@click.option("--quant", default="F32", show_default=True, help="Type of the GGUF that is made of the model.")
@click.option("--layer", type=int, help="Default: that of recipe.toml beside the vector.")
@click.option("--strength", type=float, help="Default: that of recipe.toml beside the vector.")
@click.option("--problems", default=8, show_default=True, help="Texts to compare.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of tables.")
def main(
    vector: Path, model: Path, quant: str, layer: int | None, strength: float | None, problems: int, as_json: bool
) -> None:
    if layer is None or strength is None:
        recipe = VectorRecipe.load(vector.parent)
        layer = recipe.layer if layer is None else layer
        strength = recipe.strength if strength is None else strength
    path = quantize.gguf_for(model, quant)
    steered = Steering(read.load(vector), strength, (layer,))
    flags = ("--control-vector-scaled", f"{vector}:{strength}", "--control-vector-layer-range", layer, layer)
    result: dict[str, object] = {"model": path.name, "layer": layer, "strength": strength}
    with (
        tempfile.TemporaryDirectory() as scratch,
        Engine.load(path, EngineOptions(context=1024, kv_type="f32", flash_attention="off")) as engine,
    ):
        result["likelihoods"] = likelihoods(engine, path, steered, flags, Path(scratch))
        result["texts"] = texts(engine, path, steered, flags, problems)
        result["direction.0"] = refusals(engine, path, Path(scratch, "direction-0.gguf"))
    if as_json:
        click.echo(json.dumps(result))
    else:
        show(result)


def likelihoods(
    engine: Engine, path: Path, steered: Steering, flags: tuple[object, ...], scratch: Path
) -> dict[str, dict[str, float]]:
    text = scratch / "text.txt"
    rng = random.Random(0)
    told = (
        f"{problem.question}\n\n{wordproblems.solution(problem, rng.random(), rng)}\n\n"
        for problem in wordproblems.problems("test")
    )
    text.write_text("".join(itertools.islice(told, CHUNKS * 2)))
    base = scratch / "base.dat"
    common = ("-m", path, "-c", CHUNK, "-b", CHUNK, "-t", available_cores(), "--kl-divergence-base", base, *SETTINGS)
    program = llama_tools.tool("llama-perplexity")
    llama_tools.run(program, "-f", text, "--chunks", CHUNKS, *common)
    printed = llama_tools.run(program, "--kl-divergence", *common, *flags)

    tokens, base_rows = read_base(base)
    (layer,) = steered.offsets()
    moved = SteeringVector({layer - 1 or layer + 1: steered.vector.directions[layer]}, steered.vector.model)
    plain = forced(engine, tokens, ())
    with_vector = forced(engine, tokens, (steered,))
    one_off = forced(engine, tokens, (Steering(moved, steered.strength),))
    chosen = tokens[:, CHUNK // 2 + 1 :].ravel()
    return {
        "llama-perplexity": parse(printed),
        "edge-steer": divergence(plain, with_vector, chosen),
        "on the tool's base": divergence(base_rows, with_vector, chosen),
        "one layer off": divergence(plain, one_off, chosen),
    }


def read_base(path: Path) -> tuple[npt.NDArray[np.int32], Floats]:
    """Tokens (chunks, CHUNK) and log-probabilities of the second halves from a --kl-divergence-base file."""
    raw = path.read_bytes()
    length, vocabulary, chunks = np.frombuffer(raw, "<i4", 3, offset=8)
    if raw[:8] != b"_logits_" or length != CHUNK:
        raise EdgeSteerError(f"{path} is no base file of llama-perplexity with chunks of {CHUNK}")
    tokens = np.frombuffer(raw, "<i4", chunks * length, offset=20)
    width = 2 * ((vocabulary + 1) // 2) + 4  # uint16: a float scale, a float minimum, a code for each token, padding
    codes = np.frombuffer(raw, "<u2", offset=20 + tokens.nbytes).reshape(-1, width)
    scale, minimum = np.ascontiguousarray(codes[:, :4]).view("<f4").T[..., None].astype(np.float64)
    return tokens.reshape(chunks, length), scale * codes[:, 4 : 4 + vocabulary] + minimum


def forced(engine: Engine, tokens: npt.NDArray[np.int32], steering: tuple[Steering, ...]) -> Floats:
    """Our log-probabilities at the positions that llama-perplexity evaluates."""
    half = CHUNK // 2
    bos = engine.encode("")
    rows = []
    for chunk in tokens.tolist():
        ids = [*bos, *chunk[len(bos) :]]
        rows.append(log_softmax(engine.logits(ids, half + 1, steering)[:-1]))
    return np.concatenate(rows)


def divergence(base: Floats, other: Floats, chosen: npt.NDArray[np.int32]) -> dict[str, float]:
    """llama-perplexity's statistics by its own formulas: KL over tokens with log-probability above -16."""
    kl = np.where(base > -16, np.exp(base) * (base - other), 0).sum(axis=1)
    return {
        "mean KL": float(kl.mean()),
        "median KL": float(np.median(kl)),
        "max KL": float(kl.max()),
        "perplexity": float(np.exp(-other[np.arange(len(chosen)), chosen].mean())),
        "same top %": float(100 * (base.argmax(axis=1) == other.argmax(axis=1)).mean()),
    }


def parse(printed: str) -> dict[str, float]:
    names = {
        "mean KL": r"Mean +KLD",
        "median KL": r"Median +KLD",
        "max KL": r"Maximum KLD",
        "perplexity": r"Mean PPL\(Q\)",
        "same top %": r"Same top p",
    }
    found = {}
    for name, words in names.items():
        match = re.search(rf"^{words} *: *(-?[0-9.]+)", printed, re.MULTILINE)
        if not match:
            raise EdgeSteerError(f"llama-perplexity printed no {name}")
        found[name] = float(match[1])
    return found


def texts(
    engine: Engine, path: Path, steered: Steering, flags: tuple[object, ...], problems: int
) -> dict[str, dict[str, int]]:
    """How many greedy texts of llama-completion are ours, letter by letter."""
    template = Jinja2ChatFormatter(engine._model.metadata["tokenizer.chat_template"], eos_token="", bos_token="")
    prompts = [
        template(messages=[{"role": "user", "content": problem.question}]).prompt
        for problem in itertools.islice(wordproblems.problems("test", seed=1), problems)
    ]
    program = llama_tools.tool("llama-completion")
    common = ("-m", path, "-no-cnv", "--no-display-prompt", "--simple-io", "--no-escape", "--temp", 0, *SETTINGS)
    counts = {}
    for name, steering, extra in (("unsteered", (), ()), ("steered", (steered,), flags)):
        requests = [Request(engine.encode(prompt), MAX_TOKENS, steering=steering) for prompt in prompts]
        mine = [completion.text for completion in engine.generate(requests)]
        theirs = []
        for prompt in prompts:
            said = llama_tools.run(program, *common, "-n", MAX_TOKENS, "-t", available_cores(), *extra, "-p", prompt)
            theirs.append(said.rstrip("\n").removesuffix(" [end of text]"))
        counts[name] = {"texts": problems, "equal": sum(a == b for a, b in zip(mine, theirs, strict=True))}
        counts[name]["tokens"] = sum(len(engine.encode(text)) for text in mine)
    return counts


def refusals(engine: Engine, path: Path, file: Path) -> dict[str, str]:
    """What is said of a control vector file that holds direction.0."""
    writer = gguf.GGUFWriter(file, "controlvector")
    for layer in (0, 1):
        writer.add_tensor(f"direction.{layer}", np.ones(engine.model.hidden_size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    command = (llama_tools.tool("llama-completion"), "-m", path, "-no-cnv", "-n", 1, "-p", "a", *SETTINGS)
    complaint = re.search(
        r"invalid \(zero\) direction tensor layer index",
        llama_tools.run(*command, "--control-vector", file, errors=True),
    )
    said = {"llama-completion": f"{complaint[0]}; runs on unsteered, status 0" if complaint else "taken"}
    try:
        read.load(file)
        said["edge-steer"] = "taken"
    except EdgeSteerError as error:
        said["edge-steer"] = f"refused: {str(error).removeprefix(str(file))}"
    return said


def show(result: Mapping[str, object]) -> None:
    console = Console(width=None if Console().is_terminal else 140)
    rows: Mapping[str, Mapping[str, float]] = result["likelihoods"]  # type: ignore[assignment]
    table = Table(title=f"{result['model']}, layer {result['layer']}, strength {result['strength']}")
    table.add_column("steered against unsteered")
    for column in next(iter(rows.values())):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.6f}" for value in row.values()))
    console.print(table)
    counts: Mapping[str, Mapping[str, int]] = result["texts"]  # type: ignore[assignment]
    for name, count in counts.items():
        console.print(f"{name}: {count['equal']} of {count['texts']} greedy texts equal ({count['tokens']} tokens)")
    refused: Mapping[str, str] = result["direction.0"]  # type: ignore[assignment]
    for name, said in refused.items():
        console.print(f"direction.0, {name}: {said}")


if __name__ == "__main__":
    main()
