"""After training: the calibration pairs, the choice of layer and strength, the model card's figures.

python models/abacus/prepare.py pairs     the model's own correct solutions and dense rewrites -> pairs.jsonl
python models/abacus/prepare.py choose    layer and strength on the dev split -> recipe.toml, export/abacus/dense/
python models/abacus/prepare.py measure   figures on 500 problems of the test split -> measured.json
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from edge_steer.core.backend import Backend, EngineOptions, Request
from edge_steer.core.steering import Steering
from edge_steer.evaluation.evaluate import evaluate
from edge_steer.evaluation.figures import Summary, summarise
from edge_steer.extraction.extract import extract
from edge_steer.llama.engine import Engine
from edge_steer.models import quantize
from edge_steer.models.recipe import ModelRecipe
from edge_steer.pairs import pair
from edge_steer.recipes.demo import figures as kept_figures
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.reference.model import Reference
from edge_steer.storage.files import replacing
from edge_steer.tasks import wordproblems
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.rows import UNSTEERED, Method
from edge_steer.tasks.task import WORD_PROBLEMS, Task, count_steps, grade
from edge_steer.vectors import gguf_writer

HERE = Path(__file__).parent
DENSE = HERE.parents[1] / "export" / HERE.name / "dense"
STRENGTHS = (-0.35, 0.25, 0.3, 0.325, 0.35, 0.4)
STEPS, DENSITY = 0.7, 1.5  # of the unsteered ones: what a choice must reach on dev, to hold 0.75 and 1.4 on test
REWRITE_DENSITY = 0.7  # most paragraphs merged, half of the operations still told at length


@dataclass(frozen=True)
class Cell:
    layer: int
    strength: float
    summary: Summary


@click.group()
def main() -> None:
    pass


@main.command("pairs")
@click.option("--count", default=50, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "pairs.jsonl", help="Default: pairs.jsonl here.")
def make_pairs(count: int, out: Path) -> None:
    """Own greedy solutions to calibration problems against dense rewrites of the same computations."""
    reference = Reference.load(HERE)
    rng = random.Random(0)
    problems = list(islice(wordproblems.problems("calibration"), 2 * count))
    prompts = [reference.chat([{"role": "user", "content": problem.question}]) for problem in problems]
    made: list[pair.Pair] = []
    for problem, completion in zip(problems, reference.generate([Request(p) for p in prompts]), strict=True):
        own, answer = completion.text, str(problem.answer)
        told = tuple(re.findall(r"\d+ [-+*/] \d+ = \d+", own))
        if told == problem.equations and grade(own, answer):
            made.append(pair.Pair(problem.question, _rewrite(problem, own, rng), own, answer))
    if len(made) < count:
        raise click.ClickException(f"only {len(made)} of {len(problems)} solutions are correct; {count} are needed")
    pair.write(out, made[:count])
    click.echo(f"{count} pairs; {len(made)} of {len(problems)} own solutions are right step by step")


def _rewrite(problem: wordproblems.Problem, own: str, rng: random.Random) -> str:
    """The same computations told densely: fewer steps, and the same last sentence, so that nothing is added."""
    while True:
        dense = wordproblems.solution(problem, REWRITE_DENSITY, rng)
        same_end = re.split(r"\.\s+", dense)[-1] == re.split(r"\.\s+", own)[-1]
        if same_end and count_steps(dense) < count_steps(own):
            return dense


@main.command()
@click.option("--quant", default="Q4_K_M", show_default=True)
@click.option("--problems", default=100, show_default=True)
def choose(quant: str, problems: int) -> None:
    """The layer and strength of the recipe: dev split, greedy, all layers llama.cpp can steer."""
    recipe = ModelRecipe.load(HERE)
    reference = Reference.load(HERE)
    vector = extract(reference, pair.read(HERE / "pairs.jsonl"))
    task = load_task(WORD_PROBLEMS, split="dev", limit=problems)
    with (
        Graders() as graders,
        Engine.load(quantize.gguf_for(recipe.gguf or HERE, quant), EngineOptions(parallel=32)) as engine,
    ):
        plain = _measured(engine, task, UNSTEERED, graders)
        cells = []
        for layer in recipe.layers:
            for strength in STRENGTHS:
                method = Method("steered", (Steering(vector, strength, (layer,)),))
                cells.append(Cell(layer, strength, _measured(engine, task, method, graders)))
    _print(plain, cells, f"{quant}, {problems} dev problems, greedy, phase all")
    best = _best(plain, cells)
    rule = "most accurate of those dense enough, then mildest"
    chosen = f"models/abacus/prepare.py choose: {quant}, {problems} dev problems, {rule}"
    for path, entries in (
        (HERE / "recipe.toml", {"layer": best.layer, "strength": best.strength}),
        (DENSE / "recipe.toml", {"layer": best.layer, "strength": best.strength, "chosen": json.dumps(chosen)}),
    ):
        text = path.read_text()
        for entry, value in entries.items():
            text = re.sub(rf"^{entry} = .*$", f"{entry} = {value}", text, flags=re.MULTILINE)
        with replacing(path) as temporary:
            temporary.write_text(text)
    click.echo(f"chosen: layer {best.layer}, strength {best.strength:g}")


def _measured(backend: Backend, task: Task, method: Method, graders: Graders) -> Summary:
    return summarise(evaluate(backend, task, method, graders=graders, nll=False))


def _best(plain: Summary, cells: Sequence[Cell]) -> Cell:
    """Most accurate of the cells that shorten enough; the mildest of equals: dev cannot tell a point apart."""
    enough = [
        cell
        for cell in cells
        if cell.summary.steps <= STEPS * plain.steps and cell.summary.density >= DENSITY * plain.density
    ]
    if not enough:
        raise click.ClickException("no layer and strength changes steps and density enough")
    return max(enough, key=lambda cell: (round(cell.summary.accuracy, 2), -cell.summary.density))


def _print(plain: Summary, cells: Sequence[Cell], title: str) -> None:
    table = Table("layer", "strength", "steps", "tokens", "density", "accuracy", title=title)
    for layer, strength, s in [("-", 0.0, plain), *((c.layer, c.strength, c.summary) for c in cells)]:
        table.add_row(
            str(layer), f"{strength:g}", f"{s.steps:.1f}", f"{s.tokens:.0f}", f"{s.density:.1f}", f"{s.accuracy:.2f}"
        )
    Console().print(table)


@main.command()
@click.option("--problems", default=500, show_default=True)
def measure(problems: int) -> None:
    """Accuracy, steps, tokens and density on the test split, unsteered and steered by the recipe."""
    recipe, dense = ModelRecipe.load(HERE), VectorRecipe.load(DENSE)
    vector = gguf_writer.load(DENSE / dense.vector)
    task = load_task(WORD_PROBLEMS, split="test", limit=problems)
    steered = Method("steered", (Steering(vector, dense.strength, (dense.layer,), dense.phase),))
    measured: dict[str, dict[str, Summary]] = {}
    figures: dict[str, object] = {
        "problems": problems,
        "split": "test",
        "layer": dense.layer,
        "strength": dense.strength,
        "phase": dense.phase,
        "vector": vector.digest,
    }

    def on(name: str, backend: Backend) -> None:
        measured[name] = {m.name: _measured(backend, task, m, graders) for m in (UNSTEERED, steered)}
        figures[name] = {how: kept_figures(summary) for how, summary in measured[name].items()}
        click.echo(json.dumps({name: figures[name]}))

    with Graders() as graders:
        on("torch float32", Reference.load(HERE))
        for quant in ("F16", *recipe.quants):
            with Engine.load(quantize.gguf_for(recipe.gguf or HERE, quant), EngineOptions(parallel=32)) as engine:
                on(quant, engine)
    with replacing(HERE / "measured.json") as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")
    _fill_card(measured)


def _fill_card(measured: dict[str, dict[str, Summary]]) -> None:
    lines = ["| | | accuracy (95% interval) | steps | tokens | density |", "|---|---|---|---|---|---|"]
    for name, both in measured.items():
        for how, s in both.items():
            low, high = s.accuracy_interval
            accuracy = f"{s.accuracy:.1%} ({low:.1%} to {high:.1%})"
            lines.append(f"| {name} | {how} | {accuracy} | {s.steps:.2f} | {s.tokens:.0f} | {s.density:.1f} |")
    table = "\n".join(lines)
    card = HERE / "README.md"
    text = re.sub(
        r"(<!-- measured -->\n).*(<!-- /measured -->)",
        lambda found: f"{found[1]}{table}\n{found[2]}",
        card.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    with replacing(card) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
