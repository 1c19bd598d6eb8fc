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
from edge_steer.evaluation.evaluate import Evaluator
from edge_steer.evaluation.figures import Summary, summarise
from edge_steer.extraction.extract import extract
from edge_steer.models.load import load
from edge_steer.models.recipe import ModelRecipe
from edge_steer.pairs.pair import Pair, read_pairs, write_pairs
from edge_steer.recipes.demo_table import table_figures
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.storage.files import write_text
from edge_steer.tasks import wordproblems
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task
from edge_steer.tasks.rows import UNSTEERED, Method
from edge_steer.tasks.task import Task, count_steps, grade
from edge_steer.tasks.wordproblems import WORD_PROBLEMS
from edge_steer.vectors import read

HERE = Path(__file__).parent
DENSE = HERE.parents[1] / "export" / HERE.name / "dense"
ENGINE = EngineOptions(parallel=32)
STRENGTHS = (-0.35, 0.25, 0.3, 0.325, 0.35, 0.4)
STEPS, DENSITY = 0.7, 1.5  # of the unsteered ones: what a choice must reach on dev, to hold 0.75 and 1.4 on test
REWRITE_DENSITY = 0.7  # most paragraphs merged, half of the operations still told at length


@dataclass(frozen=True)
class Candidate:
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
    rng = random.Random(0)
    problems = list(islice(wordproblems.problems("calibration"), 2 * count))
    with load(HERE, runtime="torch") as reference:
        prompts = [reference.chat([{"role": "user", "content": problem.question}]) for problem in problems]
        completions = reference.generate([Request(prompt) for prompt in prompts])
    pairs: list[Pair] = []
    for problem, completion in zip(problems, completions, strict=True):
        own, answer = completion.text, str(problem.answer)
        equations = tuple(re.findall(r"\d+ [-+*/] \d+ = \d+", own))
        if equations == problem.equations and grade(own, answer):
            pairs.append(Pair(problem.question, _rewrite(problem, own, rng), own, answer))
    if len(pairs) < count:
        raise click.ClickException(f"only {len(pairs)} of {len(problems)} solutions are correct; {count} are needed")
    write_pairs(pairs[:count], out)
    click.echo(f"{count} pairs; {len(pairs)} of {len(problems)} own solutions are right step by step")


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
    with load(HERE, runtime="torch") as reference:
        vector = extract(reference, read_pairs(HERE / "pairs.jsonl"))
    task = load_task(WORD_PROBLEMS, split="dev", limit=problems)
    with (
        Graders() as graders,
        load(recipe.gguf or HERE, quant, options=ENGINE) as engine,
    ):
        plain = _measured(engine, task, UNSTEERED, graders)
        candidates = []
        for layer in recipe.layers:
            for strength in STRENGTHS:
                method = Method("steered", (Steering(vector, strength, (layer,)),))
                candidates.append(Candidate(layer, strength, _measured(engine, task, method, graders)))
    _print(plain, candidates, f"{quant}, {problems} dev problems, greedy, phase all")
    best = _best(plain, candidates)
    rule = "most accurate of those dense enough, then mildest"
    chosen = f"models/abacus/prepare.py choose: {quant}, {problems} dev problems, {rule}"
    for path, entries in (
        (HERE / "recipe.toml", {"layer": best.layer, "strength": best.strength}),
        (DENSE / "recipe.toml", {"layer": best.layer, "strength": best.strength, "chosen": json.dumps(chosen)}),
    ):
        text = path.read_text()
        for entry, value in entries.items():
            text = re.sub(rf"^{entry} = .*$", f"{entry} = {value}", text, flags=re.MULTILINE)
        write_text(path, text)
    click.echo(f"chosen: layer {best.layer}, strength {best.strength:g}")


def _measured(backend: Backend, task: Task, method: Method, graders: Graders) -> Summary:
    return summarise(Evaluator(backend, graders, nll=False).rows(task, method))


def _best(plain: Summary, candidates: Sequence[Candidate]) -> Candidate:
    """Most accurate of the candidates that shorten enough; the mildest of equals: dev cannot tell a point apart."""
    enough = [
        candidate
        for candidate in candidates
        if candidate.summary.steps <= STEPS * plain.steps and candidate.summary.density >= DENSITY * plain.density
    ]
    if not enough:
        raise click.ClickException("no layer and strength changes steps and density enough")
    return max(enough, key=lambda c: (round(c.summary.accuracy, 2), -c.summary.density))


def _print(plain: Summary, candidates: Sequence[Candidate], title: str) -> None:
    table = Table("layer", "strength", "steps", "tokens", "density", "accuracy", title=title)
    for layer, strength, s in [("-", 0.0, plain), *((c.layer, c.strength, c.summary) for c in candidates)]:
        table.add_row(
            str(layer), f"{strength:g}", f"{s.steps:.1f}", f"{s.tokens:.0f}", f"{s.density:.1f}", f"{s.accuracy:.2f}"
        )
    Console().print(table)


@main.command()
@click.option("--problems", default=500, show_default=True)
def measure(problems: int) -> None:
    """Accuracy, steps, tokens and density on the test split, unsteered and steered by the recipe."""
    recipe, dense = ModelRecipe.load(HERE), VectorRecipe.load(DENSE)
    vector = read.load(DENSE / dense.vector)
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
        figures[name] = {how: table_figures(summary) for how, summary in measured[name].items()}
        click.echo(json.dumps({name: figures[name]}))

    with Graders() as graders:
        with load(HERE, runtime="torch") as reference:
            on("torch float32", reference)
        for quant in ("F16", *recipe.quants):
            with load(recipe.gguf or HERE, quant, options=ENGINE) as engine:
                on(quant, engine)
    write_text(HERE / "measured.json", json.dumps(figures, indent=2) + "\n")
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
        lambda marks: f"{marks[1]}{table}\n{marks[2]}",
        card.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    write_text(card, text)


if __name__ == "__main__":
    main()
