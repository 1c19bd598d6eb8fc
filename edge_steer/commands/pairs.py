"""The commands of the group pairs: check, show and contrast; generate and rewrite are in cli_solutions.

Takes click's strings and files, prints what was found, and what was dropped and why.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_steer.commands.solutions import generate, list_left_out, rewrite
from edge_steer.core.errors import EdgeSteerError
from edge_steer.terminal.options import FILE, engine_options
from edge_steer.terminal.progress import NOTES, progress_bar, say
from edge_steer.terminal.tables import print_table

if TYPE_CHECKING:
    from edge_steer.core.backend import EngineOptions
    from edge_steer.llama.engine import Engine
    from edge_steer.pairs.checks import Check, Likelihood


@click.group("pairs")
def pairs_group() -> None:
    """Contrastive pairs: make, rewrite, check, look at them."""


pairs_group.add_command(generate)
pairs_group.add_command(rewrite)


@pairs_group.command()
@click.argument("file", type=FILE)
@click.option("-o", "--out", type=FILE, help="Write the pairs that pass here (.jsonl).")
@click.option("--model", help="The model the pairs are for: its tokenizer counts.  [default: words are counted]")
@click.option("--numbers/--no-numbers", default=True, show_default=True,
              help="Drop a pair whose rewrite drops or adds a computed number.")  # fmt: skip
@click.option("--nll", is_flag=True, help="Score both sides under --model.")
@click.option("--max-nll-ratio", type=click.FloatRange(0, min_open=True),
              help="Drop rewrites with more than this times the NLL of the own solution.")  # fmt: skip
@click.option("--keep-lowest", type=click.IntRange(1), help="Of the pairs that pass, keep those of the lowest NLL.")
@click.option("--traces", multiple=True, metavar="NAME=SOLUTIONS",
              help="Score another model's solutions to the same problems too.")  # fmt: skip
@click.option("--plot", type=FILE, help="Plot the NLL of every text (.png).")
@click.option("--grader", "kind", type=click.Choice(["math", "letter"]), default="math", show_default=True)
@click.option("--grading-seconds", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True,
              help="Time limit for grading an answer.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a pair, then one of the NLL.")
@engine_options
def check(
    file: Path,
    out: Path | None,
    model: str | None,
    numbers: bool,
    nll: bool,
    max_nll_ratio: float | None,
    keep_lowest: int | None,
    traces: tuple[str, ...],
    plot: Path | None,
    kind: Any,
    grading_seconds: float,
    as_json: bool,
    engine: "EngineOptions",
) -> None:
    """Check that each rewrite is right, denser, has the same computed numbers and, if asked, is likely enough.

    What is dropped is listed with the reason. Without --out the status is 1 if a pair is dropped.
    """
    from edge_steer.evaluation import plots
    from edge_steer.pairs import checks
    from edge_steer.pairs import pair as pairs_pair
    from edge_steer.pairs.solutions import load
    from edge_steer.tasks.grading import Graders

    rules = checks.Rules(numbers, max_nll_ratio, keep_lowest)
    scored = nll or rules.by_nll or bool(traces) or plot is not None
    if scored and not model:
        raise click.UsageError("an NLL is that of a model: name it with --model")
    others = {name: load(path)[1] for name, path in map(_assignment, traces)}
    pairs = pairs_pair.read(file)
    likelihoods: list[Likelihood] = []
    with contextlib.ExitStack() as stack:
        count, backend = _counter(stack, model, scored, engine)
        graders = stack.enter_context(Graders(seconds=grading_seconds))
        found = checks.check(pairs, count, graders, kind)
        if backend:
            progress = stack.enter_context(progress_bar())
            found = checks.score(backend, pairs, found, progress)
            likelihoods = checks.likelihoods(backend, pairs, found, others, progress)
    reasons = checks.select(found, rules)
    kept = [pair for pair, why in zip(pairs, reasons, strict=True) if not why]
    if plot:
        texts = {row.source: list(row.values.values()) for row in likelihoods}
        plots.plot_likelihoods(texts, f"under {Path(str(model)).name}", plot)
    if as_json:
        for row, why in zip(found, reasons, strict=True):
            ratios = {"density_ratio": row.density_ratio, "nll_ratio": row.nll_ratio}
            click.echo(json.dumps({**asdict(row), **ratios, "reasons": why}))
        if likelihoods:
            click.echo(json.dumps({"nll": [asdict(row) for row in likelihoods]}))
    else:
        _print_checks(found, "tokens" if model else "words")
        _print_likelihoods(likelihoods)
        for row, why in zip(found, reasons, strict=True):
            if why:
                click.echo(f"{row.name}: {'; '.join(why)}")
            elif row.dropped or row.added:
                click.echo(f"{row.name}: kept, with other numbers: {_changed_numbers(row)}")
        passed = ["right and denser", *["with the same computed numbers"] * numbers, *["likely enough"] * rules.by_nll]
        click.echo(f"{len(kept)} of {len(pairs)} pairs are {', '.join(passed)}")
    if out:
        if not kept:
            raise EdgeSteerError(f"no pair passes; {out} is not written")
        pairs_pair.write(out, kept)
        say(f"wrote {out}")
    elif len(kept) < len(pairs):
        sys.exit(1)


@pairs_group.command()
@click.argument("file", type=FILE)
@click.option("--limit", type=click.IntRange(1), default=3, show_default=True)
def show(file: Path, limit: int) -> None:
    """Print pairs side by side: the text of the style to leave and that of the style to steer towards."""
    from edge_steer.pairs.pair import read

    found = read(file)
    for pair in found[:limit]:
        negative, positive = reversed(pair.sides)
        same = positive.prompt == negative.prompt
        print_table(
            ["sparse (negative)", "dense (positive)"],
            [[side.answer if same else f"{_prompt(side.prompt)}\n\n{side.answer}" for side in (negative, positive)]],
            _prompt(positive.prompt) if same else None,
        )
    click.echo(f"{min(limit, len(found))} of {len(found)} pairs shown")


@pairs_group.command()
@click.argument(
    "kind", type=click.Choice(["in-family", "opposites", "letters", "reflection", "personas", "texts"])
)  # fmt: skip
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, required=True, help="Where to write the pairs (.jsonl).")
@click.option("--positive", help="personas: the persona to steer towards.")
@click.option("--negative", help="personas: the persona to leave.")
@click.option("--template", help="personas: the user's turn, with {persona}.  [default: Act as if you're {persona}.]")
@click.option("--beginnings", is_flag=True, help="personas: also every beginning of a text, word by word.")
def contrast(
    kind: str,
    files: tuple[Path, ...],
    out: Path,
    positive: str | None,
    negative: str | None,
    template: str | None,
    beginnings: bool,
) -> None:
    """Make pairs of another contrast from FILES.

    \b
    in-family   a larger model's SOLUTIONS, the target's SOLUTIONS (InFamilySteer)
    opposites   SOLUTIONS under one system message, SOLUTIONS under its opposite (CAA)
    letters     QUESTIONS with the matching and the other answer's letter (CAA)
    reflection  the target's SOLUTIONS, steered away from reflecting (SEAL)
    personas    TEXTS that begin an answer, one a line, under two personas (repeng)
    texts       POSITIVE and NEGATIVE texts, one a line (llama-cvector-generator)
    """
    from edge_steer.pairs import pair
    from edge_steer.pairs.contrasts import CONTRASTS, Sources

    if kind != "personas" and (positive or negative or template or beginnings):
        raise click.UsageError("--positive, --negative, --template and --beginnings belong to personas")
    sources = Sources(files, (positive or "", negative or ""), beginnings=beginnings)
    made = CONTRASTS[kind](replace(sources, template=template) if template else sources)
    list_left_out(made.left_out)
    pair.write(out, made.pairs)
    click.echo(f"wrote {out}: {len(made.pairs)} pairs; next: edge-steer extract MODEL {out} -o vector.safetensors")


def _counter(
    stack: contextlib.ExitStack, model: str | None, scored: bool, engine: "EngineOptions"
) -> "tuple[Callable[[str], int], Engine | None]":
    """What counts a text's tokens, and the engine if there is to be one."""
    if not model:
        return (lambda text: len(text.split())), None
    from edge_steer.llama.engine import Engine
    from edge_steer.llama.model import LlamaModel
    from edge_steer.models import quantize

    path = quantize.gguf_for(model, progress=NOTES)
    if not scored:
        vocabulary = stack.enter_context(LlamaModel(path))
        return (lambda text: len(vocabulary.tokenize(text, add_special=False))), None
    backend = stack.enter_context(Engine.load(path, engine))
    return (lambda text: len(backend.encode(text, start=False))), backend


def _assignment(given: str) -> tuple[str, Path]:
    name, sign, path = given.partition("=")
    if not (name and sign and path):
        raise click.UsageError(f"--traces {given!r}: write NAME=FILE")
    return name, Path(path)


def _prompt(prompt: Any) -> str:
    """What stands before an answer, as text; a role is named unless it is the user's only turn."""
    if isinstance(prompt, str):
        return prompt
    named = len(prompt) > 1
    return "\n".join(f"{m['role']}: {m['content']}" if named else m["content"] for m in prompt)


def _print_checks(found: "Sequence[Check]", unit: str) -> None:
    rows = []
    for name in ("steps", "tokens", "density"):
        sides = ([getattr(row, f"{side}_{name}") for row in found] for side in ("negative", "positive"))
        rows.append([name, *(f"{sum(values) / len(found):.1f}" for values in sides)])
    print_table(["", "sparse", "dense"], rows, f"means over {len(found)} pairs, counted in {unit}")


def _print_likelihoods(found: "Sequence[Likelihood]") -> None:
    if not found:
        return
    rows = []
    for row in found:
        interval = "" if row.interval is None else "{:.3f}..{:.3f}".format(*row.interval)
        rows.append([row.source, str(len(row.values)), f"{row.mean:.3f}", interval, f"{row.ratio:.2f}"])
    print_table(["", "texts", "NLL", "95% interval", "to own"], rows, "NLL per token in nats under the model")


def _changed_numbers(row: "Check") -> str:
    parts = (("dropped", row.dropped), ("added", row.added))
    return ", ".join(f"{what} {' '.join(numbers)}" for what, numbers in parts if numbers)
