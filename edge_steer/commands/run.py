"""`edge-steer run`: a steered model answers prompts."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_steer.core.errors import RequestError
from edge_steer.terminal.options import FILE, engine_options, steering_from, steering_options
from edge_steer.terminal.progress import NOTES, progress_bar
from edge_steer.terminal.tables import print_side_by_side

if TYPE_CHECKING:
    from edge_steer.core.backend import Completion, EngineOptions, Request
    from edge_steer.llama.engine import Engine


@click.command()
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
    engine: "EngineOptions",
) -> None:
    """Answer PROMPT (or a --file of prompts, or standard input) with MODEL, steered by --vector.

    MODEL is a GGUF file, a Hugging Face folder or a hub id.
    """
    from edge_steer.core.backend import Message, Request, Sampling
    from edge_steer.llama.engine import Engine
    from edge_steer.models import quantize

    prompts = _prompts(prompt, prompts_file)
    steering = steering_from(vectors, layers, strength, phase)
    if compare and not steering:
        raise click.UsageError("--compare needs a --vector")
    sampling = Sampling(
        temperature, top_k, top_p, min_p, seed, repeat_penalty, frequency_penalty, presence_penalty, repeat_last_n
    )
    path = quantize.gguf_for(model, quant, progress=NOTES)
    with Engine.load(path, engine) as loaded:
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


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    if prompt is not None and file:
        raise click.UsageError("give a PROMPT or a --file, not both")
    if file:
        from edge_steer.storage.files import read_lines

        prompts = read_lines(file, "prompts, one a line")
    else:
        prompts = [prompt if prompt not in (None, "-") else sys.stdin.read().strip()]
    if not prompts or not prompts[0]:
        raise click.UsageError("no prompt: give one as an argument, in a --file or on standard input")
    return prompts
