"""Builds of the bundled model, from given pairs and from none, with a real endpoint that rewrites by rule."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from endpoint import Endpoint, dense_rewriter
from heard import Heard
from hub_server import COMMIT, printed, serving
from paths import ROOT

from edge_steer.certificates.certificate import read_certificate
from edge_steer.commands.main import main
from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.vector import Tuning
from edge_steer.models.recipe import ModelRecipe
from edge_steer.pairs.pair import read_pairs, write_pairs
from edge_steer.pairs.solutions import read_solutions
from edge_steer.recipes.build import Build, StepRecord
from edge_steer.recipes.pair_steps import CHECK, GENERATE, REWRITE
from edge_steer.recipes.parity_step import failed_quants
from edge_steer.recipes.plan import STEPS, duration_text, plan_build
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.recipes.run import run_build
from edge_steer.recipes.step import StepContext, with_recipe_settings
from edge_steer.recipes.vector_steps import tuned_point
from edge_steer.storage import records
from edge_steer.storage.digests import digest
from edge_steer.tasks.load import load_task
from edge_steer.vectors import read

ENGINE = EngineOptions(threads=1, parallel=8)
NAMES = [step.name for step in STEPS]
WITH_PAIRS = """\
# pairs at hand
model = "abacus"
vector = "vector.gguf"  # kept
phase = "generated"
pairs = "few.jsonl"

[sweep]
task = "wordproblems"
layers = "5"
strengths = "0.4"
dev = 5
test = 5
choose = "density"
margin = 0.5
quant = "q8_0"
nll = false
max_tokens = 200

[extract]
quant = "F16"
"""
PARITY = """
[parity]
quants = ["q8_0"]
texts = 2
"""
WITHOUT_SWEEP = """\
model = "abacus"
vector = "vector.gguf"
phase = "all"
layer = 5
strength = 0.4
pairs = "few.jsonl"
"""
INDEXED = """\
name = "abacus"
source = "nobody/abacus"
layers = "1-5"
quants = ["Q8_0"]

[index]
name = "abacus"
quant = "F16"
sha256 = "{sha256}"
parts = ["abacus-gguf==1.0: abacus_gguf/abacus-F16.gguf"]
"""
FROM_NOTHING = """\
model = "abacus"
vector = "vector.gguf"
phase = "all"
layer = 5
strength = 0.4
chosen = "by hand"

[pairs]
task = "wordproblems"
count = 6
quant = "F16"
rewriter = "by-rule"
base_url = "{url}"

[extract]
quant = "F16"

[parity]
quants = ["Q8_0"]
texts = 2
task = "wordproblems"
problems = 4
"""
WITHOUT_PROBLEMS = FROM_NOTHING.replace('texts = 2\ntask = "wordproblems"\nproblems = 4', "texts = 2")

MINE = """\
name = "mine"
file = "mine.jsonl"
prompt = "{question}"
question = "question"
answer = "answer"
id = "id"
grader = "math"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a vector beside the models of this checkout, with ten of the bundled pairs."""
    (tmp_path / "models").symlink_to(ROOT / "models", target_is_directory=True)
    folder = tmp_path / "export" / "abacus" / "dense"
    folder.mkdir(parents=True)
    write_pairs(read_pairs(ROOT / "models" / "abacus" / "pairs.jsonl")[:10], folder / "few.jsonl")
    return folder


def run(folder: Path) -> tuple[Build, list[str]]:
    """The build after a run, and its note on each step it did."""
    heard = Heard()
    outcome = run_build(folder, options=ENGINE, progress=heard)
    return outcome.build, [line for line in heard.notes if line.split(":")[0] in NAMES]


def states(folder: Path) -> dict[str, str]:
    build = Build.load(folder)
    return {step.name: state.why or state.kind for step in STEPS for state in [step.state(build)]}


def test_a_model_of_the_package_index_is_built_from_without_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("EDGE_STEER_CACHE", str(tmp_path / "cache"))
    bundled = ROOT / "models" / "abacus" / "abacus-F16.gguf"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "recipe.toml").write_text(INDEXED.format(sha256=digest(bundled)))
    index = ModelRecipe.load(mine).index
    assert index
    shutil.copy(bundled, index.path)
    written = WITHOUT_SWEEP + PARITY
    (folder / "recipe.toml").write_text(written)
    with pytest.raises(EdgeSteerError):
        run_build(folder, mine, options=ENGINE)
    (folder / "recipe.toml").write_text(f'weights = "index"\n{written}')
    assert plan_build(folder, mine).steps[0].work == "abacus of the package index"
    outcome = run_build(folder, mine, options=ENGINE)
    certificate = read_certificate(folder / "certificate.json")
    assert certificate.reference.source == "build/abacus-F32.gguf"
    assert certificate.reference.revision == f"dequantised from {digest(folder / 'build' / 'abacus-F32.gguf')}"
    assert [entry.quant for entry in certificate.files] == ["Q8_0"]
    assert not outcome.failed_quants
    assert plan_build(folder, mine).to_do == ()
    (mine / "recipe.toml").write_text(INDEXED.format(sha256=digest(bundled)).partition("[index]")[0])
    with pytest.raises(EdgeSteerError, match=r"weights: .*recipe.toml names no file of the package index"):
        run_build(folder, mine, options=ENGINE)


def test_a_build_from_given_pairs_and_what_is_done_again(folder: Path) -> None:
    recipe = folder / "recipe.toml"
    recipe.write_text(WITH_PAIRS + PARITY)
    with pytest.raises(EdgeSteerError, match=r"layer: is not chosen yet; build .* first"):
        VectorRecipe.load(folder)
    waiting = ["not done yet", "after extract", "after extract", "after export"]
    assert list(states(folder).values()) == ["given", "given", "given", *waiting]
    build, notes = run(folder)
    assert notes == [f"{step}: not done yet" for step in ("extract", "sweep", "export", "parity")]
    assert tuned_point(build) == (5, 0.4)
    assert not failed_quants(build)
    assert read.load(folder / "vector.gguf").tuning == Tuning((5,), 0.4, "generated")
    recipe_now = VectorRecipe.load(folder)
    assert (recipe_now.layer, recipe_now.strength, recipe_now.pairs) == (5, 0.4, (folder / "few.jsonl").resolve())
    assert recipe_now.chosen.startswith("edge-steer build: Q8_0, 5 wordproblems problems; densest")
    above, tables = WITH_PAIRS.split("\n[sweep]")
    assert recipe.read_text().startswith(above)
    assert recipe.read_text().endswith(f"\n[sweep]{tables}{PARITY}")

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert set(states(folder).values()) == {"given", "done"}
    assert run(folder)[1] == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before

    first = (folder / "vector.gguf").read_bytes()
    (folder / "vector.gguf").unlink()
    assert run(folder)[1] == ["export: vector.gguf is missing"]
    assert (folder / "vector.gguf").read_bytes() == first

    recipe.write_text(recipe.read_text().replace("texts = 2", "texts = 1"))
    assert run(folder)[1] == ["parity: its texts changed"]

    write_pairs(read_pairs(folder / "few.jsonl")[:8], folder / "few.jsonl")
    assert states(folder)["extract"] == "its pairs changed"
    assert states(folder)["parity"] == "after export"
    assert [line.split(":")[0] for line in run(folder)[1]] == ["extract", "sweep", "export", "parity"]


def test_a_build_from_nothing_but_a_model_and_an_endpoint(folder: Path) -> None:
    with Endpoint(dense_rewriter()) as endpoint:
        (folder / "recipe.toml").write_text(FROM_NOTHING.format(url=endpoint.url))
        planned = {step.step: step.work for step in plan_build(folder, threads=1).steps}
        assert planned["generate"] == "6 right solutions to wordproblems by F16, about 1,800 tokens"
        assert planned["rewrite"].startswith("6 requests, about 3,")
        build, notes = run(folder)
        assert len(notes) == len(STEPS) - 1
        assert endpoint.answered == 6
        pairs = read_pairs(folder / "build" / "pairs.jsonl")
        assert VectorRecipe.load(folder.parent / folder.name).pairs == (folder / "build" / "pairs.jsonl").resolve()
        passing, dropped = (build.records["check"].findings[key] for key in ("pairs", "dropped"))
        assert (len(pairs), passing + dropped) == (passing, 6)
        assert build.records["extract"].findings["pairs"] == passing
        task = read_certificate(folder / "certificate.json").task
        assert task
        assert task.problems == 4
        assert "wordproblems" in (folder / "report.html").read_text()

        recipe = folder / "recipe.toml"
        recipe.write_text(recipe.read_text().replace("problems = 4", "problems = 5"))
        assert run(folder)[1] == ["parity: its problems changed"]
        [entry] = read_certificate(folder / "certificate.json").files
        assert {dose.other.samples for dose in entry.behaviour} == {5}
        _, rows = records.read(folder / "rows" / "reference.jsonl")
        assert len({(row["method"], row["id"]) for row in rows}) == 5 * len(entry.behaviour)

        without_problems = recipe.read_text().replace('task = "wordproblems"\nproblems = 5\n', "")
        recipe.write_text(without_problems.replace("[pairs]", "[pairs]\nkeep_lowest = 3"))
        assert states(folder)["check"] == "its rules changed"
        recipe.write_text(recipe.read_text().replace("count = 6", "count = 7"))
        assert run(folder)[1][:2] == ["generate: its count changed", "rewrite: its solutions changed"]
        assert endpoint.answered == 7
        assert len(read_pairs(folder / "build" / "pairs.jsonl")) == 3
        assert endpoint.answered == 7


def test_rules_and_candidates_of_a_recipe(folder: Path) -> None:
    (folder / "rules.txt").write_text("Rewrite it.\n\nProblem:\n{problem}\n\nSolution:\n{solution}")
    more = "[pairs]\nrules = 'rules.txt'\ncandidates = 2"
    with Endpoint(dense_rewriter()) as endpoint:
        recipe = FROM_NOTHING.format(url=endpoint.url).replace("[pairs]", more).replace("count = 6", "count = 3")
        (folder / "recipe.toml").write_text(recipe)
        assert next(s.work for s in plan_build(folder).steps if s.step == "rewrite").startswith("6 requests")
        build, heard = Build.load(folder), Heard()
        (folder / "build").mkdir()
        for step in (GENERATE, REWRITE, CHECK):
            output = step.run(build, StepContext(ENGINE, heard))
            files = {str(file): digest(folder / file) for file in output.files}
            build.records[step.name] = StepRecord({}, files, output.findings, 0.0, {})
    assert endpoint.seen[0].prompt.startswith("Rewrite it.")
    assert [seen.body.get("temperature") for seen in endpoint.seen] == [None] * 3 + [1.0] * 3
    pairs = read_pairs(folder / "build" / "pairs.jsonl")
    assert len({pair.negative_digest for pair in pairs}) == len(pairs) <= 3


def test_a_larger_model_gives_the_positives(folder: Path) -> None:
    recipe = FROM_NOTHING.replace('rewriter = "by-rule"\nbase_url = "{url}"', 'larger = "abacus"\nlarger_quant = "F16"')
    recipe = recipe.replace('count = 6\nquant = "F16"', 'count = 8\nquant = "Q3_K_S"')  # one answer of 8 is another
    (folder / "recipe.toml").write_text(recipe)
    assert next(s.work for s in plan_build(folder).steps if s.step == "rewrite") == (
        "8 solutions by abacus in F16, about 2,400 tokens"
    )
    build, heard = Build.load(folder), Heard()
    (folder / "build").mkdir()
    for step in (GENERATE, REWRITE, CHECK):
        output = step.run(build, StepContext(ENGINE, heard))
        files = {str(file): digest(folder / file) for file in output.files}
        build.records[step.name] = StepRecord({}, files, output.findings, 0.0, {})
    own, solved = (
        {solution.question: solution.text for solution in read_solutions(build.folder / output)}
        for output in (next(iter(build.records[name].outputs)) for name in ("generate", "rewrite"))
    )
    pairs = read_pairs(folder / "build" / "pairs.jsonl")
    assert pairs
    assert {(pair.negative, pair.positive) for pair in pairs} <= {(own[q], solved.get(q)) for q in own}
    assert all(pair.negative != pair.positive for pair in pairs)
    (folder / "recipe.toml").write_text(recipe.replace("[pairs]", "[pairs]\ncandidates = 2"))
    with pytest.raises(EdgeSteerError, match=r"pairs\.larger: solves instead of a rewriter"):
        Build.load(folder)
    (folder / "recipe.toml").write_text(recipe.replace('larger = "abacus"', 'larger = "none"'))
    with pytest.raises(EdgeSteerError, match=r"no models/none/recipe.toml"):
        Build.load(folder)


def test_a_stopped_build_keeps_what_was_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Endpoint(dense_rewriter()) as endpoint:
        (folder / "recipe.toml").write_text(WITHOUT_PROBLEMS.format(url=endpoint.url))

        class Stop(Heard):
            def __call__(self, doing: str, done: int = 0, total: int = 1) -> None:
                if (doing, done) == ("rewriting", 3):
                    raise KeyboardInterrupt

        stop = Stop()
        with pytest.raises(KeyboardInterrupt):
            run_build(folder, options=ENGINE, progress=stop)
        assert stop.notes[-1] == f"stopped at rewrite; build {folder} again to go on from there"
        assert states(folder)["generate"] == "done"
        assert states(folder)["rewrite"] == "not done yet"
        answered = endpoint.answered
        build, notes = run(folder)
        assert notes[0] == "rewrite: not done yet"
        assert build.records["rewrite"].findings["pairs"] == 6
        assert endpoint.answered - answered <= 3


def test_a_build_json_of_the_first_format_keeps_its_certificate(folder: Path) -> None:
    (folder / "recipe.toml").write_text(WITH_PAIRS.split("[sweep]")[0] + "layer = 5\nstrength = 0.3\n" + PARITY)
    run(folder)
    lock = json.loads((folder / "build.json").read_text())
    for record in lock["steps"].values():
        record["found"] = record.pop("findings")
    export, parity = lock["steps"]["export"], lock["steps"]["parity"]
    parity["inputs"]["vector"] = export["outputs"]["vector.gguf"]
    for key in ("strength", "phase"):
        del export["inputs"][key]
    (folder / "build.json").write_text(json.dumps({**lock, "format": "edge-steer build 1"}))
    assert run(folder)[1] == ["export: its strength changed"]
    assert states(folder)["parity"] == "done"


def test_only_the_problems_that_a_sweep_draws_are_left_out(folder: Path) -> None:
    samples = load_task("wordproblems", split="calibration", limit=8).samples
    lines = [json.dumps({"id": s.id, "question": s.question, "answer": s.answer}) for s in samples]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    (folder / "mine.toml").write_text(MINE)
    recipe = FROM_NOTHING.replace('[pairs]\ntask = "wordproblems"\ncount = 6', '[pairs]\ntask = "mine.toml"\ncount = 3')
    sweep = '[sweep]\ntask = "mine.toml"\nlayers = "5"\nstrengths = "0.4"\ndev = 2\ntest = 3\n'
    (folder / "recipe.toml").write_text(recipe + sweep)
    build, heard = Build.load(folder), Heard()
    (folder / "build").mkdir()
    output = GENERATE.run(build, StepContext(ENGINE, heard))
    dev, test = load_task(folder / "mine.toml").split(2, 3)
    solved = {solution.id for solution in read_solutions(folder / output.files[0])}
    assert solved
    assert solved <= {sample.id for sample in samples} - {sample.id for sample in (*dev.samples, *test.samples)}
    assert "2 of 8 problems are among the 2 of mine" in heard.notes
    assert "3 of 8 problems are among the 3 of mine" in heard.notes


def test_every_task_of_a_recipe_is_asked_by_its_protocol(folder: Path) -> None:
    recipe = FROM_NOTHING.replace("count = 6", "count = 2")
    inputs = []
    for line in ("", 'protocol = "bias-only"\n'):
        (folder / "recipe.toml").write_text(line + recipe)
        inputs.append(GENERATE.inputs(Build.load(folder)))
    assert inputs[0] != inputs[1]
    (folder / "build").mkdir()
    output = GENERATE.run(Build.load(folder), StepContext(ENGINE, Heard()))
    settings = records.read(folder / output.files[0])[0]["task"]["settings"]
    assert (settings["sampling"]["temperature"], settings["grading"]) == (1.0, "boxed")


def test_a_recipe_says_prompt_system_message_and_stop_strings(folder: Path) -> None:
    """To every task that is asked, and a step is made again where they change."""
    recipe = FROM_NOTHING.replace("count = 6", "count = 1")
    (folder / "recipe.toml").write_text(recipe)
    before = GENERATE.inputs(Build.load(folder))
    (folder / "recipe.toml").write_text(
        'prompt = "{question} Go on."\nsystem = "Be brief."\nstop = ["The answer"]\n' + recipe
    )
    build = Build.load(folder)
    assert GENERATE.inputs(build) != before
    for task in (load_task("wordproblems", limit=2), load_task("wordproblems", protocol="bias-only", limit=2)):
        settings = with_recipe_settings(build, task, 7).settings
        assert (settings.prompt, settings.system) == ("{question} Go on.", "Be brief.")
        assert (settings.stop, settings.max_tokens) == (("The answer",), 7)
    (folder / "recipe.toml").write_text('system = ""\n' + recipe)
    with_system = load_task("wordproblems").with_settings(system="Be brief.")
    assert with_recipe_settings(Build.load(folder), with_system).settings.system is None


def test_a_model_of_the_hub_is_planned_and_pinned(folder: Path, tmp_path: Path) -> None:
    """Stopped before anything is fetched: the commit is kept, and the next build takes that one."""
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "recipe.toml").write_text('name = "abacus"\nsource = "we/abacus"\nlayers = "1-5"\nquants = ["Q8_0"]\n')
    (folder / "recipe.toml").write_text(WITH_PAIRS.split("[sweep]")[0] + "layer = 5\nstrength = 0.3\n" + PARITY)
    code = f"""
from edge_steer.core.progress import Progress
from edge_steer.recipes.build import Build, StepRecord
from edge_steer.recipes.plan import plan_build
from edge_steer.recipes.run import run_build
from edge_steer.recipes.vector_steps import EXTRACT
plan = plan_build({str(folder)!r}, {str(hub)!r}, threads=1)
print(plan.steps[0].work)
print(plan.seconds > 0)
class Stop(Progress):
    def __call__(self, *_): raise KeyboardInterrupt
    def note(self, text): print(text)
try: run_build({str(folder)!r}, {str(hub)!r}, progress=Stop())
except KeyboardInterrupt: pass
build = Build.load({str(folder)!r}, {str(hub)!r})
print(EXTRACT.recorded_inputs(build)["model"])
print(build.revision)
"""
    with serving(tmp_path / "cache") as environment:
        work, estimated, note, stopped, model, commit = printed(environment, code)
    assert work.startswith(f"7.37 MB of we/abacus at {COMMIT[:10]}")
    assert (estimated, note) == ("True", "extract: not done yet")
    assert model == f"{{'source': 'we/abacus', 'revision': '{COMMIT}', 'quant': None}}"
    assert commit == COMMIT
    assert stopped == f"stopped at extract; build {folder} again to go on from there"


def test_a_missing_key_is_said_before_anything_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (folder / "recipe.toml").write_text(FROM_NOTHING.replace('base_url = "{url}"\n', ""))
    with pytest.raises(EdgeSteerError, match="no API key"):
        run(folder)
    assert states(folder)["generate"] == "not done yet"


def test_the_plan_runs_nothing(folder: Path) -> None:
    (folder / "recipe.toml").write_text(WITH_PAIRS + PARITY)
    done = CliRunner().invoke(main, ["build", str(folder), "--dry-run", "--threads", "2"])
    assert done.exit_code == 0, done.output
    assert "20 rows by Q8_0: 2 cells on 5 dev problems of wordproblems" in done.output
    assert "4 steps to do" in done.output
    listed = json.loads(CliRunner().invoke(main, ["build", str(folder), "--dry-run", "--json"]).output)
    assert [step["step"] for step in listed] == ["fetch", *NAMES]
    assert {path.name for path in folder.iterdir()} == {"few.jsonl", "recipe.toml"}


def test_parity_out_of_tolerance_is_status_1(folder: Path, tmp_path: Path) -> None:
    """A GGUF that is not of the reference's weights, for some of them are overwritten."""
    damaged = tmp_path / "damaged"
    shutil.copytree(ROOT / "models" / "abacus", damaged, ignore=shutil.ignore_patterns("training*", "*.py"))
    with (damaged / "abacus-F16.gguf").open("r+b") as file:
        file.seek(-400_000, 2)
        file.write(bytes(300_000))
    (folder / "recipe.toml").write_text(WITH_PAIRS.split("[sweep]")[0] + "layer = 5\nstrength = 0.3\n" + PARITY)
    for line in ("3 steps to do", "everything is done"):
        done = CliRunner().invoke(main, ["build", str(folder), "--model", str(damaged), "--threads", "1"])
        assert done.exit_code == 1, done.output
        assert line in done.output
        assert "parity OUT OF TOLERANCE: Q8_0" in done.output


def test_a_sweep_that_finds_nothing_ends_the_build(folder: Path) -> None:
    (folder / "recipe.toml").write_text(
        WITH_PAIRS.replace('choose = "density"', 'choose = "accuracy"').replace("0.4", "40").replace("200", "9")
    )
    with pytest.raises(EdgeSteerError, match=r"no cell of the sweep did better .* give other layers"):
        run(folder)
    assert "layer =" not in (folder / "recipe.toml").read_text()
    assert states(folder)["extract"] == "done"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('"abacus"', '"absent"', r"no models/absent/recipe\.toml"),
        ('layers = "5"', 'layers = "0-2"', "layers 0-2; control vectors of abacus have layers"),
        ('"density"', '"speed"', "sweep.choose: 'speed'; allowed are accuracy, density"),
        ('"0.4"', '"x"', "cannot read strengths 'x'"),
        ('quant = "q8_0"', 'quant = "Q9"', "quant Q9 is not known; allowed are F32"),
        ('quants = ["q8_0"]', 'quants = ["q8_0", "int4"]', "quant INT4 is not known"),
        ("dev = 5", "dev = 0", "sweep.dev: is 0; at least 1 is needed"),
        ("dev = 5", "colour = 5", "sweep.colour: no such key; allowed are choose, dev"),
        ("nll = false", "nll = 0", "sweep.nll: 0 is not true or false"),
        ("[sweep]", "[other]", "other: no such key; allowed are chosen, extract, layer"),
        ('"vector.gguf"', '"../vector.gguf"', "vector: '../vector.gguf' is no name of a .gguf file"),
        ('pairs = "few.jsonl"\n', "", "pairs: is missing; name a file of pairs"),
        ('pairs = "few.jsonl"\n', 'layers = "1-3"\n', "layers: are a trained vector's"),
        ('pairs = "few.jsonl"', "pairs = 1", "pairs: 1 is not a table"),
        ("few.jsonl", "absent.jsonl", r"no such file: .*absent\.jsonl"),
        (
            'phase = "',
            'template = "absent.jinja"\nphase = "',
            r"no such file: .*absent\.jinja; expected a Jinja chat template",
        ),
        ('phase = "', 'template = "latin.jinja"\nphase = "', r"latin\.jinja is not UTF-8 at byte 1; expected a Jinja"),
        (
            'phase = "',
            'protocol = "mine"\nphase = "',
            "protocol: 'mine' is none of densesteer, densesteer-code, bias-only",
        ),
        ('phase = "', 'prompt = "Solve."\nphase = "', r"prompt: 'Solve\.' has no \{question\} in it"),
        ('phase = "', 'stop = [""]\nphase = "', "stop: a stop string is empty; leave it out"),
    ],
)
def test_a_recipe_is_checked_before_anything_runs(folder: Path, before: str, after: str, words: str) -> None:
    assert before in WITH_PAIRS + PARITY
    (folder / "latin.jinja").write_bytes(b"\xff")
    (folder / "recipe.toml").write_text((WITH_PAIRS + PARITY).replace(before, after))
    with pytest.raises(EdgeSteerError, match=words) as caught:
        plan_build(folder)
    assert "\n" not in str(caught.value)


def test_another_build_json_is_refused(folder: Path) -> None:
    (folder / "recipe.toml").write_text(WITH_PAIRS + PARITY)
    for content in ("", "[]", "{}", '{"format": "edge-steer build 1"}', '{"format": 2, "steps": {}}'):
        (folder / "build.json").write_text(content)
        with pytest.raises(EdgeSteerError, match=r"build\.json is not what this edge-steer writes; delete it"):
            Build.load(folder)


@pytest.mark.parametrize(
    ("seconds", "text"), [(59, "seconds"), (90, "1.5 min"), (1200, "20 min"), (5400, "1.5 h"), (40 * 3600, "40 h")]
)
def test_a_time_is_no_more_exact_than_it_is_known(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_an_unknown_step_is_refused_with_those_there_are(folder: Path) -> None:
    (folder / "recipe.toml").write_text(WITH_PAIRS + PARITY)
    with pytest.raises(EdgeSteerError, match=f"no step 'tune'; its steps are {', '.join(NAMES)}"):
        plan_build(folder, first="tune")
