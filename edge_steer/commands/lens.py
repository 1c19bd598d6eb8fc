"""`edge-steer lens`: what a vector says in tokens, layer by layer, or what it changes in a prompt."""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_steer.terminal.options import (
    FILE,
    FOLDER,
    LAYERS,
    MODEL,
    VECTOR,
    SteeringChoice,
    engine_options,
    json_option,
    quant_option,
    revision_option,
    runtime_option,
    steering_from,
)
from edge_steer.terminal.parameters import PHASE
from edge_steer.terminal.progress import NOTES, progress_bar
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edge_steer.core.backend import Backend, EngineOptions, Tokens
    from edge_steer.core.vector import Phase
    from edge_steer.lens.in_context import ContextReading
    from edge_steer.lens.reading import LayerReading, Reading
    from edge_steer.lens.scores import NullChoice
    from edge_steer.lens.topics import LayerTopics
    from edge_steer.models.load import Runtime
    from edge_steer.pairs.rewrite import Rewriter
    from edge_steer.storage.hub import Snapshot

IN_CONTEXT = "in-context"
SHOWN = 5  # tokens of a layer in the table


@click.command()
@click.argument("vector", type=VECTOR)
@click.argument("model", type=MODEL)
@click.option("--score", type=click.Choice(["cosine", "norm-gain", IN_CONTEXT]), default="cosine", show_default=True,
              help="Cosine with the unembedding; product with it through the final norm's gain; "
              "or what it changes in a --prompt.")  # fmt: skip
@click.option("--top", type=click.IntRange(1), help="Tokens at either end.  [default: 50, in context 5]")
@click.option(
    "--layers", type=LAYERS, metavar="LAYERS", help="Layers of the vector.  [default: all; in context, as tuned]"
)
@click.option("--prompt", help="What MODEL is asked, in context.")
@click.option("--raw", is_flag=True, help="Take the prompt as it is, without the chat template.")
@click.option("--strength", type=float, help="Strength of the vector, in context.  [default: the file's, else 1]")
@click.option("--phase", type=PHASE, help="Which positions it steers, in context.  [default: the file's, else all]")
@click.option("--random", "directions", type=click.IntRange(1), default=20, show_default=True,
              help="How many random directions it is compared with.")  # fmt: skip
@click.option("--random-seed", type=click.IntRange(0), default=0, show_default=True, help="Draws them.")
@click.option("--quantile", type=click.FloatRange(0, 1), default=0.95, show_default=True,
              help="Which quantile of their scores is shown.")  # fmt: skip
@click.option("-o", "--output", type=FILE, help="Write a page (.html).")
@click.option("--texts", type=FOLDER, help="Write lens.json, lens.csv and a text for each layer here.")
@click.option("--topics", type=FILE, help="Have a language model name the topics of each layer; kept in this file.")
@click.option("--topics-model", type=MODEL, metavar="MODEL", help="Have this model on this machine name them.")
@click.option("--endpoint-model", help="Model of the endpoint that names them.  [default: o3, as the paper]")
@click.option("--base-url", help="The endpoint's address.  [default: $OPENAI_BASE_URL, else OpenAI's]")
@click.option("--dry-run", is_flag=True, help="Send nothing: print what would be sent for the first layer.")
@quant_option
@revision_option
@runtime_option
@engine_options
@json_option
def lens(
    vector: str,
    model: str,
    score: str,
    top: int | None,
    layers: tuple[int, ...] | None,
    prompt: str | None,
    raw: bool,
    strength: float | None,
    phase: "Phase | None",
    directions: int,
    random_seed: int,
    quantile: float,
    output: Path | None,
    texts: Path | None,
    topics: Path | None,
    topics_model: str | None,
    endpoint_model: str | None,
    base_url: str | None,
    dry_run: bool,
    quant: str | None,
    revision: str | None,
    runtime: "Runtime",
    engine: "EngineOptions",
    as_json: bool,
) -> None:
    """Read the VECTOR of a file through MODEL's unembedding: the tokens that each layer raises and lowers most.

    MODEL is a GGUF, a Hugging Face folder or a hub id; it is not run unless --score is in-context. Beside the scores
    stands what random directions of the same length reach.
    """
    from edge_steer.lens.scores import NullChoice

    null = NullChoice(directions, random_seed, quantile)
    if score == IN_CONTEXT:
        if prompt is None or texts or topics or dry_run:
            raise click.UsageError("in context the lens needs a --prompt, and gives no --texts or --topics")
        steering = SteeringChoice((vector,), layers, strength, phase)
        with _running(model, quant, revision, runtime, engine) as (backend, files):
            tokens = backend.encode(prompt) if raw else backend.chat([{"role": "user", "content": prompt}])
            context = _read_in_context(backend, files, tokens, steering, top, null)
        _print_context(context, as_json)
        if output:
            _write_page(output, context)
        return
    if prompt is not None or raw or strength is not None or phase or engine.lora:
        raise click.UsageError("--prompt, --raw, --strength, --phase and --lora are for --score in-context")
    reading = _read(vector, model, quant, revision, score, layers, top, null)
    naming = TopicsChoice(topics, topics_model, endpoint_model, base_url)
    if dry_run:
        from edge_steer.lens.topics import prompt_of

        click.echo(prompt_of(next(layer for layer in reading.layers if layer.top)))
        return
    named = _name_topics(reading, naming, engine)
    _print_reading(reading, named, as_json)
    if texts:
        from edge_steer.lens.text import write_texts

        click.echo(f"wrote {write_texts(texts, reading)[0]} and a text for each layer", err=True)
    if output:
        _write_page(output, reading, named)


@dataclass(frozen=True)
class TopicsChoice:
    """Who names topics, and the file that keeps them; None is nobody. local: a MODEL in place of an endpoint."""

    file: Path | None
    local: str | None
    endpoint_model: str | None
    base_url: str | None


def _read(
    vector: str,
    model: str,
    quant: str | None,
    revision: str | None,
    score: str,
    layers: tuple[int, ...] | None,
    top: int | None,
    null: "NullChoice",
) -> "Reading":
    from edge_steer.lens.reading import TOP, read_vector
    from edge_steer.lens.scores import checked_score
    from edge_steer.lens.unembedding import read_unembedding
    from edge_steer.models import quantize, sources
    from edge_steer.vectors.read import load as load_vector

    files = quantize.gguf_for(model, quant, revision=revision) if quant else sources.find(model, revision=revision)
    unembedding = read_unembedding(files)
    return read_vector(load_vector(vector), unembedding, checked_score(score), layers=layers, top=top or TOP, null=null)


@contextlib.contextmanager
def _running(
    model: str, quant: str | None, revision: str | None, runtime: "Runtime", engine: "EngineOptions"
) -> "Iterator[tuple[Backend, Path | Snapshot]]":
    """The model and the very files that it runs."""
    from edge_steer.models import quantize, sources
    from edge_steer.models.load import load

    files: Path | Snapshot
    if runtime == "llama":
        files = quantize.gguf_for(model, quant, revision=revision, threads=engine.threads, progress=NOTES)
        model, quant, revision = str(files), None, None
    elif sources.names_gguf(model):
        files = sources.find(model, revision=revision, progress=NOTES)
    else:
        files = sources.weights(model, revision)
    with load(model, quant, runtime=runtime, revision=revision, options=engine, progress=NOTES) as backend:
        yield backend, files


def _read_in_context(
    backend: "Backend",
    files: "Path | Snapshot",
    tokens: "Tokens",
    steering: SteeringChoice,
    top: int | None,
    null: "NullChoice",
) -> "ContextReading":
    from edge_steer.lens.in_context import TOP, read_in_context
    from edge_steer.lens.unembedding import read_unembedding

    with progress_bar() as progress:
        return read_in_context(
            backend,
            read_unembedding(files),
            tokens,
            steering_from(steering),
            top=top or TOP,
            null=null,
            progress=progress,
        )


def _name_topics(reading: "Reading", choice: TopicsChoice, engine: "EngineOptions") -> "tuple[LayerTopics, ...]":
    if choice.file is None:
        if choice.local or choice.endpoint_model or choice.base_url:
            raise click.UsageError("name the file that keeps the topics with --topics")
        return ()
    if choice.local and (choice.endpoint_model or choice.base_url):
        raise click.UsageError("--topics-model is a model on this machine; leave out --endpoint-model and --base-url")
    from edge_steer.lens.topics import DEFAULT_MODEL, name_topics
    from edge_steer.models.load import load
    from edge_steer.pairs.endpoint import Endpoint
    from edge_steer.pairs.rewrite import ModelRewriter

    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_bar())
        rewriter: Rewriter
        if choice.local:
            rewriter = ModelRewriter(stack.enter_context(load(choice.local, options=engine, progress=progress)))
        else:
            rewriter = Endpoint(choice.endpoint_model or DEFAULT_MODEL, choice.base_url)
        return name_topics(reading, rewriter, choice.file, progress=progress)


def _print_reading(reading: "Reading", topics: "Sequence[LayerTopics]", as_json: bool) -> None:
    if as_json:
        named = {"topics": [asdict(one) for one in topics]} if topics else {}
        click.echo(json.dumps({**reading.to_json(), **named}))
        return
    null = reading.null
    print_table(
        ["layer", "norm", "largest", "random", "beyond", "raises", "lowers"],
        map(_row, reading.layers),
        f"{reading.score}, {reading.origin.unembedding} of {reading.origin.model}",
    )
    click.echo(
        f"random: the largest score of random directions of the same length, {null.quantile:.0%} quantile of "
        f"{null.directions} (seed {null.seed}); beyond: how many tokens score higher"
    )
    click.echo(f"stable rank {reading.geometry.stable_rank:.3g} of {len(reading.geometry.layers)} layers")
    for one in topics:
        click.echo(f"\nlayer {one.layer}: {one.text or one.problem}")


def _row(layer: "LayerReading") -> list[str]:
    from edge_steer.lens.vocabulary import quoted

    if layer.null is None:
        return [str(layer.layer), "0", "", "", "", "zero: it says nothing", ""]
    raised, lowered = (" ".join(quoted(one.text) for one in side[:SHOWN]) for side in (layer.top, layer.bottom))
    figures = (layer.norm, layer.top[0].score, layer.null.largest)
    return [str(layer.layer), *(f"{figure:.3g}" for figure in figures), str(layer.beyond), raised, lowered]


def _print_context(reading: "ContextReading", as_json: bool) -> None:
    """The last position, which chooses the first token of the answer; JSON has them all."""
    from edge_steer.lens.vocabulary import quoted

    if as_json:
        click.echo(json.dumps(reading.to_json()))
        return
    print_table(
        ["layer", "KL", "random", "likeliest", "steered", "raises"],
        (
            [
                str(layer),
                f"{cells[-1].kl:.3g}",
                f"{cells[-1].null_kl:.3g}",
                quoted(cells[-1].unsteered),
                quoted(cells[-1].steered),
                " ".join(quoted(one.text) for one in cells[-1].raised),
            ]
            for layer, cells in zip(reading.layers, reading.cells, strict=True)
        ),
        f"the first token of the answer, read after each layer of {reading.model}",
    )


def _write_page(output: Path, reading: "Reading | ContextReading", topics: "Sequence[LayerTopics]" = ()) -> None:
    from edge_steer.lens.page import context_page, reading_page
    from edge_steer.lens.reading import Reading
    from edge_steer.storage.files import write_text

    html = reading_page(reading, topics) if isinstance(reading, Reading) else context_page(reading)
    click.echo(f"wrote {write_text(output, html)}", err=True)
