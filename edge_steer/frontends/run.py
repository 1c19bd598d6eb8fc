"""`edge-steer run`: a steered model answers prompts."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_steer.core.errors import RequestError
from edge_steer.terminal.options import (
    FILE,
    MODEL,
    SamplingChanges,
    SteeringChoice,
    engine_options,
    json_option,
    quant_option,
    sampling_options,
    steering_from,
    steering_options,
)
from edge_steer.terminal.progress import NOTES, progress_bar
from edge_steer.terminal.tables import print_side_by_side

if TYPE_CHECKING:
    from edge_steer.core.backend import Backend, Completion, EngineOptions, Message, Request


@click.command()
@click.argument("model", type=MODEL)
@click.argument("prompt", required=False)
@click.option("-f", "--prompt-file", type=FILE, help="A file of prompts, one a line.")
@quant_option
@steering_options
@click.option("--compare", is_flag=True, help="Print unsteered and steered side by side.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--system", help="A system message.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@sampling_options
@click.option("--stop", multiple=True, help="End the text at this string; repeatable.")
@engine_options
@json_option
def run(
    model: str,
    prompt: str | None,
    prompt_file: Path | None,
    quant: str | None,
    steering_choice: SteeringChoice,
    compare: bool,
    raw: bool,
    system: str | None,
    max_tokens: int,
    sampling: SamplingChanges,
    stop: tuple[str, ...],
    engine: "EngineOptions",
    as_json: bool,
) -> None:
    """Answer PROMPT (or a --prompt-file, or standard input) with MODEL, steered by --vector.

    MODEL is a GGUF file, a Hugging Face folder or a hub id. It answers greedily where no option says otherwise.
    """
    from edge_steer.core.backend import Request
    from edge_steer.core.sampling import GREEDY
    from edge_steer.models.load import load

    prompts = _prompts(prompt, prompt_file)
    steering = steering_from(steering_choice)
    if compare and not steering:
        raise click.UsageError("--compare needs a --vector")
    before: list[Message] = [{"role": "system", "content": system}] if system else []
    with load(model, quant, options=engine, progress=NOTES) as loaded:
        requests = []
        for text in prompts:
            tokens = loaded.encode(text) if raw else loaded.chat([*before, {"role": "user", "content": text}])
            requests.append(Request(tokens, max_tokens, steering, sampling.over(GREEDY), stop))
        if compare:
            _compare(loaded, prompts, requests, as_json)
        else:
            _answer(loaded, prompts, requests, as_json)


def _answer(backend: "Backend", prompts: list[str], requests: "list[Request]", as_json: bool) -> None:
    if len(requests) == 1 and not as_json:
        [completion] = backend.generate(requests, on_text=lambda _index, text: click.echo(text, nl=False))
        _refuse([completion])
        click.echo()
        return
    completions = _generate(backend, requests)
    for prompt, completion in zip(prompts, completions, strict=True):
        click.echo(
            json.dumps({"prompt": prompt, **asdict(completion)}) if as_json else f"> {prompt}\n{completion.text}\n"
        )
    _refuse(completions)


def _compare(backend: "Backend", prompts: list[str], requests: "list[Request]", as_json: bool) -> None:
    completions = _generate(backend, [*(replace(request, steering=()) for request in requests), *requests])
    for i, prompt in enumerate(prompts):
        unsteered, steered = completions[i], completions[len(prompts) + i]
        if as_json:
            click.echo(json.dumps({"prompt": prompt, "unsteered": asdict(unsteered), "steered": asdict(steered)}))
        else:
            click.echo(f"> {prompt}")
            print_side_by_side({"unsteered": unsteered, "steered": steered})
    _refuse(completions)


def _generate(backend: "Backend", requests: "list[Request]") -> "list[Completion]":
    """All completions, counted on stderr as they end."""
    with progress_bar() as progress:
        answered = 0

        def count(*_: object) -> None:
            nonlocal answered
            answered += 1
            progress("answering", answered, len(requests))

        return backend.generate(requests, on_done=count)


def _refuse(completions: "list[Completion]") -> None:
    """After all answers are printed: the first request that could not be served is an error."""
    if failed := [(i, completion) for i, completion in enumerate(completions) if completion.finish == "error"]:
        index, completion = failed[0]
        which = f"request {index + 1} of {len(completions)}: " if len(completions) > 1 else ""
        raise RequestError(which + completion.error)


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    if prompt is not None and file:
        raise click.UsageError("give a PROMPT or a --prompt-file, not both")
    if file:
        from edge_steer.storage.files import read_lines

        prompts = read_lines(file, "prompts, one a line")
    else:
        prompts = [prompt if prompt not in (None, "-") else sys.stdin.read().strip()]
    if not prompts or not prompts[0]:
        raise click.UsageError("no prompt: give one as an argument, in a --prompt-file or on standard input")
    return prompts
