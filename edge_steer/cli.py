"""The command line: parse, call, print. Results go to stdout, progress and errors to stderr.

Heavy packages are imported inside the commands, so that --help answers at once.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_steer.cli_build import build
from edge_steer.cli_eval import compare_command, eval_command
from edge_steer.cli_extract import extract
from edge_steer.cli_lm_eval import lm_eval
from edge_steer.cli_pairs import pairs_group
from edge_steer.cli_parity import parity
from edge_steer.cli_sweep import plot, sweep
from edge_steer.cli_vector import export, import_command, vector_group
from edge_steer.console import (
    print_outcome,
    print_side_by_side,
    print_table,
    print_vector,
    progress_bar,
    say,
)
from edge_steer.errors import RequestError
from edge_steer.options import FILE, FOLDER, Group, engine_options, steering_from, steering_options

if TYPE_CHECKING:
    from edge_steer.backend import Completion, Request
    from edge_steer.engine import Engine


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


@main.command()
@click.argument("model", required=False)
@click.option("-o", "--out", type=FILE, help="Where to write the GGUF.  [default: the cache]")
@click.option("--type", "outtype", help="F32, F16 or BF16.  [default: the one that loses nothing]")
@click.option("--revision", help="Commit of a hub model.")
@click.option("--fetch-converter", is_flag=True, help="Only fetch llama.cpp's converter, for later use offline.")
def convert(
    model: str | None, out: Path | None, outtype: str | None, revision: str | None, fetch_converter: bool
) -> None:
    """Convert MODEL (a Hugging Face folder, a recipe's folder or a hub id) to GGUF by llama.cpp's own converter."""
    from edge_steer import models

    if fetch_converter:
        click.echo(models.converter(say))
        return
    if not model:
        raise click.UsageError("name a MODEL to convert, or give --fetch-converter")
    click.echo(models.convert(model, out, outtype, revision=revision, progress=say))


@main.command()
@click.argument("source", metavar="MODEL")
@click.argument("quant")
@click.option("-o", "--out", type=FILE, help="Where to write the GGUF.  [default: the cache]")
@click.option("--imatrix", type=FILE, help="Importance matrix of llama-imatrix (GGUF); the smallest types need one.")
@click.option("--threads", type=click.IntRange(1, 512))
def quantize(source: str, quant: str, out: Path | None, imatrix: Path | None, threads: int | None) -> None:
    """Quantise MODEL to QUANT, such as Q4_K_M, by llama.cpp's quantiser.

    MODEL is an F32, F16 or BF16 GGUF file, a Hugging Face folder or a hub id, which are converted first.
    """
    from edge_steer import importance, llama, models

    path = models.gguf_for(source, progress=say)
    if not imatrix:
        click.echo(models.quantize(path, quant, out, threads=threads, progress=say))
        return
    if not out:
        raise click.UsageError("with --imatrix the file needs a name; give --out")
    llama.quantize_file(path, out, quant.upper(), threads, importance.read(imatrix))
    click.echo(out)


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
@click.option("--repeat-penalty", type=click.FloatRange(0, min_open=True), default=1.0, help="[default: off]")
@click.option("--frequency-penalty", type=float, default=0.0, help="[default: off]")
@click.option("--presence-penalty", type=float, default=0.0, help="[default: off]")
@click.option("--repeat-last-n", type=click.IntRange(0), default=64, show_default=True, help="Tokens penalised.")
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
    repeat_penalty: float,
    frequency_penalty: float,
    presence_penalty: float,
    repeat_last_n: int,
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
    steering = steering_from(vectors, layers, strength, phase)
    if compare and not steering:
        raise click.UsageError("--compare needs a --vector")
    sampling = Sampling(
        temperature, top_k, top_p, min_p, seed, repeat_penalty, frequency_penalty, presence_penalty, repeat_last_n
    )
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
        [completion] = engine.generate(requests, on_text=lambda _index, text: click.echo(text, nl=False))
        _refuse([completion])
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
    _refuse(completions)


def _compare(engine: "Engine", prompts: list[str], requests: "list[Request]", as_json: bool) -> None:
    completions = engine.generate([*(replace(request, steering=()) for request in requests), *requests])
    for i, prompt in enumerate(prompts):
        unsteered, steered = completions[i], completions[len(prompts) + i]
        if as_json:
            click.echo(json.dumps({"prompt": prompt, "unsteered": asdict(unsteered), "steered": asdict(steered)}))
        else:
            click.echo(f"> {prompt}")
            print_side_by_side({"unsteered": unsteered, "steered": steered})
    _refuse(completions)


def _refuse(completions: "list[Completion]") -> None:
    """After all answers are printed: the first request that could not be served is an error."""
    if failed := [(i, completion) for i, completion in enumerate(completions) if completion.finish == "error"]:
        index, completion = failed[0]
        which = f"request {index + 1} of {len(completions)}: " if len(completions) > 1 else ""
        raise RequestError(which + completion.error)


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
                 "pairs": vector.pairs, "provenance": vector.provenance, "digest": vector.digest,
                 "norms": vector.norms}  # fmt: skip
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


main.add_command(lm_eval)
main.add_command(build)
main.add_command(extract)
main.add_command(import_command)
main.add_command(export)
main.add_command(vector_group)
main.add_command(eval_command)
main.add_command(compare_command)
main.add_command(pairs_group)
main.add_command(parity)
main.add_command(plot)
main.add_command(sweep)

if __name__ == "__main__":
    main()
