"""The command line: parse, call, print. Results go to stdout, progress and errors to stderr.

Heavy packages are imported inside the commands, so that --help answers at once.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge_steer.console import (
    print_outcome,
    print_parity,
    print_side_by_side,
    print_table,
    print_vector,
    progress_bar,
    say,
)
from edge_steer.errors import EdgeSteerError

if TYPE_CHECKING:
    from edge_steer.backend import Request
    from edge_steer.engine import Engine
    from edge_steer.vector import Steering

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


class Group(click.Group):
    """Prints what a user can mend in one line with exit status 1; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeSteerError as error:
            click.echo(f"edge-steer: {error}", err=True)
            ctx.exit(1)


@click.group(
    cls=Group,
    context_settings={
        "auto_envvar_prefix": "EDGE_STEER",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(package_name="edge-steer")
def main() -> None:
    """Steer small language models on a laptop: extract, export, run, prove.

    Every option can be set in the environment, as EDGE_STEER_<COMMAND>_<OPTION>.
    """


def engine_options(command: F) -> F:
    """How the model runs in llama.cpp."""
    for option in (
        click.option(
            "--gpu-layers", default=-1, show_default=True, help="Layers to offload where possible; -1 is all."
        ),
        click.option("--flash-attention", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True),
        click.option("--kv-type", type=click.Choice(["f32", "f16", "q8_0"]), default="f16", show_default=True),
        click.option(
            "--parallel", type=click.IntRange(1, 256), default=8, show_default=True, help="Sequences at once."
        ),
        click.option("--context", type=click.IntRange(1), help="Most positions of a sequence.  [default: the model's]"),
        click.option("--threads", type=click.IntRange(1, 512), help="[default: the cores this process may use]"),
    ):
        command = option(command)
    return command


def steering_options(command: F) -> F:
    """Which vectors steer, where, how strongly and when."""
    for option in (
        click.option("--phase", type=click.Choice(["all", "generated"]), default="all", show_default=True,
                     help="Steer every position, or from the last prompt token on."),
        click.option("--strength", type=float, default=1.0, show_default=True,
                     help="Strength of the vectors given without one."),
        click.option("--layers", help="Layers to steer, as 3 or 1-5 or 1,2,7-9.  [default: all of the vector's]"),
        click.option("--vector", "vectors", multiple=True, metavar="FILE[:STRENGTH]",
                     help="A control vector (.gguf) or steering vector (.safetensors); several add up."),
    ):  # fmt: skip
        command = option(command)
    return command


@main.command()
@click.option("--model", type=FOLDER, help="Model folder with recipe.toml.  [default: the bundled model]")
@click.option("--out", type=FOLDER, help="Folder of the vector's recipe.  [default: export/<model>/dense]")
@click.option("--problems", type=click.IntRange(1), default=100, show_default=True, help="Held-out problems to solve.")
@click.option("--threads", type=click.IntRange(1, 512))
def demo(model: Path | None, out: Path | None, problems: int, threads: int | None) -> None:
    """Extract, export, quantise, steer and compare with the reference, on the bundled model."""
    from edge_steer import demo as demonstration
    from edge_steer.recipes import ModelRecipe, bundled_model

    folder = model or bundled_model()
    out = out or folder.parents[1] / "export" / ModelRecipe.load(folder).name / "dense"
    with progress_bar() as progress:
        outcome = demonstration.demo(folder, out, problems=problems, threads=threads, progress=progress)

    print_outcome(outcome)
    click.echo(f"wrote {out}/vector.gguf, table.json and response.png")


@main.group()
def pairs() -> None:
    """Look at contrastive pairs."""


@pairs.command("show")
@click.argument("file", type=FILE)
@click.option("--limit", type=click.IntRange(1), default=3, show_default=True)
def pairs_show(file: Path, limit: int) -> None:
    """Print pairs side by side: the sparse solution and its dense rewrite."""

    from edge_steer.pairs import read

    found = read(file)
    for pair in found[:limit]:
        print_table(["sparse (negative)", "dense (positive)"], [[pair.negative, pair.positive]], pair.question)
    click.echo(f"{min(limit, len(found))} of {len(found)} pairs shown")


@pairs.command("check")
@click.argument("file", type=FILE)
@click.option("--model", type=FILE, help="A GGUF whose tokenizer counts the tokens.  [default: count words]")
@click.option("--json", "as_json", is_flag=True)
def pairs_check(file: Path, model: Path | None, as_json: bool) -> None:
    """Check that both answers of each pair are right and the positive is denser; status 1 if a pair is not."""

    from edge_steer import pairs as contrast
    from edge_steer.tasks import grade

    if model:
        from edge_steer.llama import LlamaModel

        with LlamaModel(model) as loaded:
            tokenize = loaded.tokenize
            found = contrast.check(contrast.read(file), lambda text: len(tokenize(text, add_special=False)), grade)
    else:
        found = contrast.check(contrast.read(file), lambda text: len(text.split()), grade)
    bad = [row for row in found if not (row.right and row.density_ratio > 1)]
    if as_json:
        for row in found:
            click.echo(json.dumps({**asdict(row), "density_ratio": row.density_ratio}))
    else:
        rows = []
        for name in ("steps", "tokens", "density"):
            sides = ([getattr(row, f"{side}_{name}") for row in found] for side in ("negative", "positive"))
            rows.append([name, *(f"{sum(values) / len(found):.1f}" for values in sides)])
        unit = "tokens" if model else "words"
        print_table(["", "sparse", "dense"], rows, f"means over {len(found)} pairs, counted in {unit}")
        for row in bad:
            click.echo(f"{row.name}: " + ("not denser" if row.right else "a wrong answer"))
        click.echo(f"{len(found) - len(bad)} of {len(found)} pairs are right and denser")
    if bad:
        sys.exit(1)


@main.command()
@click.argument("model")
@click.argument("pairs_file", metavar="PAIRS", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="Where to write the steering vector (.safetensors).")
@click.option("--layers", help="Layers to extract.  [default: all blocks]")
@click.option("--normalise", is_flag=True, help="Scale each direction to norm 1.")
@click.option("--revision", help="Commit of a hub model.")
@click.option("--threads", type=click.IntRange(1, 512))
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
def extract(
    model: str,
    pairs_file: Path,
    out: Path,
    layers: str | None,
    normalise: bool,
    revision: str | None,
    threads: int | None,
    trust_remote_code: bool,
) -> None:
    """Extract a steering vector from MODEL (a folder or hub id) on contrastive PAIRS (.jsonl)."""
    from edge_steer.extract import extract as extract_vector
    from edge_steer.pairs import read
    from edge_steer.reference import Reference
    from edge_steer.vector import parse_layers

    found = read(pairs_file)
    with progress_bar() as progress:
        progress("loading the model", 0, 1)
        reference = Reference.load(model, revision=revision, threads=threads, trust_remote_code=trust_remote_code)
        vector = extract_vector(
            reference,
            found,
            layers=parse_layers(layers) if layers else None,
            normalise=normalise,
            progress=lambda done, total: progress("extracting", done, total),
        )
    vector.save(out)
    print_vector(vector)
    click.echo(f"wrote {out}; next: edge-steer export {out} -o vector.gguf")


@main.command()
@click.argument("vector", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="Where to write the GGUF control vector.")
@click.option("--layers", help="Layers to keep.  [default: all but layer 0]")
@click.option("--strength", type=float, default=1.0, show_default=True, help="Bake this strength into the values.")
def export(vector: Path, out: Path, layers: str | None, strength: float) -> None:
    """Write a steering VECTOR (.safetensors) as a GGUF control vector for llama.cpp."""
    from edge_steer import export as vector_files
    from edge_steer.vector import parse_layers, spans

    wanted = parse_layers(layers) if layers else None
    written = vector_files.write(vector_files.load(vector), out, layers=wanted, strength=strength)
    if written.left_out:
        click.echo("layer 0 left out: llama.cpp's control vectors have none", err=True)
    click.echo(f"wrote {out}: layers {spans(written.vector.layers)}, strength {strength:g} baked in")


@main.command()
@click.argument("model", required=False)
@click.option("-o", "--out", type=FILE, help="Where to write the GGUF.  [default: the cache]")
@click.option("--type", "outtype", help="F32, F16 or BF16.  [default: the one that loses nothing]")
@click.option("--revision", help="Commit of a hub model.")
@click.option("--fetch-converter", is_flag=True, help="Only fetch llama.cpp's converter, for later use offline.")
def convert(
    model: str | None, out: Path | None, outtype: str | None, revision: str | None, fetch_converter: bool
) -> None:
    """Convert MODEL (a Hugging Face folder or hub id) to GGUF by llama.cpp's own converter."""
    from edge_steer import models

    if fetch_converter:
        click.echo(models.converter(say))
        return
    if not model:
        raise click.UsageError("name a MODEL to convert, or give --fetch-converter")
    click.echo(models.convert(model, out, outtype, revision=revision, progress=say))


@main.command()
@click.argument("source", type=FILE)
@click.argument("quant")
@click.option("-o", "--out", type=FILE, help="Where to write the GGUF.  [default: the cache]")
@click.option("--threads", type=click.IntRange(1, 512))
def quantize(source: Path, quant: str, out: Path | None, threads: int | None) -> None:
    """Quantise SOURCE (an F32, F16 or BF16 GGUF) to QUANT, such as Q4_K_M, by llama.cpp's quantiser."""
    from edge_steer import models

    click.echo(models.quantize(source, quant, out, threads=threads, progress=say))


@main.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("-f", "--file", "prompts_file", type=FILE, help="A file of prompts, one a line.")
@click.option("--quant", help="Quantise MODEL to this type first (cached).")
@steering_options
@click.option("--compare", is_flag=True, help="Print unsteered and steered side by side.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a completion.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--system", help="A system message.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(0), default=0, help="[default: off]")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="[default: off]")
@click.option("--min-p", type=click.FloatRange(0, 1), default=0.0, help="[default: off]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--stop", multiple=True, help="End the text at this string; repeatable.")
@engine_options
def run(
    model: str,
    prompt: str | None,
    prompts_file: Path | None,
    quant: str | None,
    vectors: tuple[str, ...],
    layers: str | None,
    strength: float,
    phase: str,
    compare: bool,
    as_json: bool,
    raw: bool,
    system: str | None,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    stop: tuple[str, ...],
    **engine: Any,
) -> None:
    """Answer PROMPT (or a --file of prompts, or standard input) with MODEL, steered by --vector.

    MODEL is a GGUF file, a Hugging Face folder or a hub id.
    """
    from edge_steer import models
    from edge_steer.backend import Message, Request, Sampling
    from edge_steer.engine import Engine

    prompts = _prompts(prompt, prompts_file)
    steering = _steering(vectors, layers, strength, phase)
    if compare and not steering:
        raise click.UsageError("--compare needs a --vector")
    sampling = Sampling(temperature, top_k, top_p, min_p, seed)
    path = models.gguf_for(model, quant, progress=say)
    with Engine.load(path, **engine) as loaded:
        before: list[Message] = [{"role": "system", "content": system}] if system else []
        requests = []
        for text in prompts:
            tokens = loaded.encode(text) if raw else loaded.chat([*before, {"role": "user", "content": text}])
            requests.append(Request(tokens, max_tokens, steering, sampling, stop))
        if compare:
            _compare(loaded, prompts, requests, as_json)
        else:
            _answer(loaded, prompts, requests, as_json)


def _answer(engine: "Engine", prompts: list[str], requests: "list[Request]", as_json: bool) -> None:
    if len(requests) == 1 and not as_json:
        engine.generate(requests, on_text=lambda _index, text: click.echo(text, nl=False))
        click.echo()
        return
    with progress_bar() as progress:
        done = 0

        def count(*_: object) -> None:
            nonlocal done
            done += 1
            progress("answering", done, len(requests))

        completions = engine.generate(requests, on_done=count)
    for prompt, completion in zip(prompts, completions, strict=True):
        click.echo(
            json.dumps({"prompt": prompt, **asdict(completion)}) if as_json else f"> {prompt}\n{completion.text}\n"
        )


def _compare(engine: "Engine", prompts: list[str], requests: "list[Request]", as_json: bool) -> None:
    completions = engine.generate([*(replace(request, steering=()) for request in requests), *requests])
    for i, prompt in enumerate(prompts):
        unsteered, steered = completions[i], completions[len(prompts) + i]
        if as_json:
            click.echo(json.dumps({"prompt": prompt, "unsteered": asdict(unsteered), "steered": asdict(steered)}))
        else:
            click.echo(f"> {prompt}")
            print_side_by_side({"unsteered": unsteered, "steered": steered})


@main.command()
@click.argument("model", type=FILE)
@click.option("--reference", required=True, help="The same model's Hugging Face folder or hub id.")
@click.option("--texts", type=FILE, required=True, help="Pairs (.jsonl) or plain text, one a line, to compare on.")
@click.option("--limit", type=click.IntRange(1), default=16, show_default=True, help="Texts to use.")
@steering_options
@click.option("--tolerance", type=click.FloatRange(0, min_open=True), help="Mean KL allowed.  [default: by quant]")
@click.option("--revision", help="Commit of a hub reference.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--threads", type=click.IntRange(1, 512))
def parity(
    model: Path,
    reference: str,
    texts: Path,
    limit: int,
    vectors: tuple[str, ...],
    layers: str | None,
    strength: float,
    phase: str,
    tolerance: float | None,
    revision: str | None,
    as_json: bool,
    threads: int | None,
) -> None:
    """Compare MODEL (a GGUF file) with its reference in PyTorch, unsteered and steered; status 1 if out of tolerance.

    An F32 file is also checked for the mechanism: every layer, both phases, with F32 KV and no flash attention.
    """
    from edge_steer import models
    from edge_steer import parity as check
    from edge_steer.engine import Engine
    from edge_steer.reference import Reference

    steering = _steering(vectors, layers, strength, phase)
    quant = models.quant_of(model)
    with progress_bar() as progress:
        progress("loading the reference", 0, 1)
        torch = Reference.load(reference, revision=revision, threads=threads)
        settings: dict[str, Any] = {"kv_type": "f32", "flash_attention": "off"} if quant == "F32" else {}
        with Engine.load(model, threads=threads, **settings) as engine:
            compared = check.read_texts(texts, torch)[:limit]
            report = check.check(torch, engine, compared, steering, quant, tolerance, progress)
    if as_json:
        click.echo(json.dumps(asdict(report)))
    else:
        print_parity(report)
    if not report.passed:
        sys.exit(1)


@main.command()
@click.argument("file", type=FILE, required=False)
@click.option("--json", "as_json", is_flag=True)
def info(file: Path | None, as_json: bool) -> None:
    """Describe a model or vector FILE, or without one this machine and what llama.cpp can use of it."""

    from edge_steer import export as vector_files

    if file is None:
        from edge_steer.llama import default_threads, system_info

        facts: dict[str, Any] = {"cores this process may use": default_threads(), **system_info()}
    elif described := vector_files.describe_model(file):
        facts = described
    else:
        vector = vector_files.load(file)
        if not as_json:
            print_vector(vector)
            return
        facts = {"model": asdict(vector.model), "method": vector.method, "pooling": vector.pooling,
                 "pairs": vector.pairs, "digest": vector.digest, "norms": vector.norms}  # fmt: skip
    if as_json:
        click.echo(json.dumps(facts))
        return
    print_table(["", ""], ([name, str(value)] for name, value in facts.items()))


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    if prompt is not None and file:
        raise click.UsageError("give a PROMPT or a --file, not both")
    if file:
        from edge_steer.files import read_lines

        prompts = read_lines(file, "prompts, one a line")
    else:
        prompts = [prompt if prompt not in (None, "-") else sys.stdin.read().strip()]
    if not prompts or not prompts[0]:
        raise click.UsageError("no prompt: give one as an argument, in a --file or on standard input")
    return prompts


def _steering(vectors: tuple[str, ...], layers: str | None, strength: float, phase: Any) -> "tuple[Steering, ...]":
    from edge_steer import export as vector_files
    from edge_steer.vector import Steering, parse_layers

    if layers and not vectors:
        raise click.UsageError("--layers needs a --vector")
    steering = []
    for given in vectors:
        name, _, factor = given.rpartition(":")
        try:
            path, own = (Path(name), float(factor)) if name else (Path(given), strength)
        except ValueError:
            path, own = Path(given), strength
        steering.append(Steering(vector_files.load(path), own, parse_layers(layers) if layers else None, phase))
    return tuple(steering)


if __name__ == "__main__":
    main()
