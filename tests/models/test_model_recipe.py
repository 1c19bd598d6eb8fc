"""Every recipe that is shipped, and recipes of vectors, written, filled in and read back."""

from dataclasses import replace
from pathlib import Path

import pytest
from paths import ROOT

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.vector import Tuning
from edge_steer.evaluation.sweep_cells import parse_strengths
from edge_steer.models.recipe import ModelRecipe
from edge_steer.recipes.build import Build
from edge_steer.recipes.build_recipe import BuildRecipe, PairTable
from edge_steer.recipes.recipe import VectorRecipe, fill
from edge_steer.storage import hub
from edge_steer.vectors.read import load as load_vector

MODELS = sorted(path.parent for path in ROOT.glob("models/*/recipe.toml"))
TRAINED = [ROOT / "export/qwen2.5-coder-0.5b-instruct" / name for name in ("gsm8k", "gsm8k-chat")]
BUILT = sorted({path.parent for path in ROOT.glob("export/*/*/recipe.toml")} - {*TRAINED})
PAPERS = (
    "qwen2.5-1.5b-instruct", "qwen2.5-3b-instruct", "qwen2.5-7b-instruct", "qwen2.5-math-1.5b", "qwen2.5-math-7b",
    "qwen2.5-1.5b", "qwen2.5-7b", "qwen2.5-14b",
    "llama-3.2-1b-instruct", "llama-3.2-3b-instruct", "llama-3.1-8b", "llama-3.1-8b-instruct",
)  # fmt: skip
DISTILLED = {
    f"{base}_{data}"
    for base in ("qwen2.5-3b-instruct", "llama-3.2-3b-instruct")
    for data in ("short_cot", "long_cot", "mix-long", "mix-large")
}
UNPINNED = DISTILLED - {"qwen2.5-3b-instruct_mix-long"}  # no public project pins a commit of them


def recipe(folder: Path) -> VectorRecipe:
    return VectorRecipe(
        folder=folder,
        model='Qwen2.5 "mini" \\ 1',
        vector="vector.gguf",
        layer=17,
        strength=-2.5,
        phase="generated",
        pairs=None,
        chosen="dichteste Zelle, λ = 2 \N{GRINNING FACE}\x7f\ttab",
    )


def test_a_recipe_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = recipe(tmp_path / "export" / "vector")
    assert written.save() == tmp_path / "export" / "vector" / "recipe.toml"
    assert VectorRecipe.load(written.folder) == written


def test_pairs_are_kept_relative_to_the_folder(tmp_path: Path) -> None:
    written = replace(recipe(tmp_path / "export" / "vector"), pairs=(tmp_path / "pairs.jsonl").resolve())
    text = written.save().read_text()
    assert 'pairs = "../../pairs.jsonl"' in text
    assert str(tmp_path) not in text
    assert VectorRecipe.load(written.folder) == written


def test_another_recipe_is_never_overwritten(tmp_path: Path) -> None:
    recipe(tmp_path).save()
    before = (tmp_path / "recipe.toml").read_bytes()
    assert recipe(tmp_path).save().read_bytes() == before
    with pytest.raises(EdgeSteerError, match="its layer is 17, not 16"):
        replace(recipe(tmp_path), layer=16).save()
    assert (tmp_path / "recipe.toml").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeSteerError, match="cannot make the folder"):
        recipe(tmp_path / "file" / "vector").save()


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_model_recipe_is_whole(folder: Path) -> None:
    recipe = ModelRecipe.load(folder)
    assert recipe.name == folder.name
    if recipe.source == str(folder):
        return
    assert hub.parse_hub_id(recipe.source) == (recipe.source, None)
    assert recipe.name == recipe.source.split("/")[1].lower()
    assert (recipe.revision is None) == (recipe.name in UNPINNED)
    assert recipe.blocks
    assert recipe.layers == tuple(range(recipe.blocks // 3, 2 * recipe.blocks // 3))
    assert recipe.layer is None
    assert all(hub.parse_hub_id(repo) == (repo, None) and repo.lower().endswith("gguf") for repo in recipe.ggufs)
    assert recipe.chat


def test_the_papers_models_have_recipes_of_their_own_commits() -> None:
    recipes = [ModelRecipe.load(folder) for folder in MODELS]
    assert {*PAPERS, *DISTILLED} < {recipe.name for recipe in recipes}
    for key in ("name", "source"):
        assert len({getattr(recipe, key) for recipe in recipes}) == len(recipes)
    pinned = [recipe.revision for recipe in recipes if recipe.revision]
    assert len(set(pinned)) == len(pinned)


@pytest.mark.parametrize("folder", BUILT, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_a_shipped_vectors_recipe_can_be_built(folder: Path) -> None:
    build = Build.load(folder)
    assert build.recipe.model == folder.parts[-2]
    if build.recipe.sweep is None:
        assert VectorRecipe.load(folder).layer == build.recipe.layer


@pytest.mark.parametrize("folder", TRAINED, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_a_shipped_trained_vector_is_applied_whole(folder: Path) -> None:
    vector = load_vector(folder)
    layers = tuple(range(1, vector.model.block_count))
    assert (vector.layers, vector.tuning) == (layers, Tuning(layers, 1.0, "all"))
    with pytest.raises(EdgeSteerError, match="layers: are a trained vector's"):
        Build.load(folder)


@pytest.mark.parametrize(
    ("model", "vector", "layer", "strength"),
    [
        ("qwen2.5-3b-instruct", "dense", 6, 4.0),
        ("qwen2.5-1.5b-instruct", "dense", 27, 2.5),
        ("llama-3.2-1b-instruct", "dense", 8, -2.0),
        ("llama-3.2-3b-instruct", "dense", 24, -2.0),
        ("qwen2.5-3b-instruct", "infamily", 6, 0.45),
        ("qwen2.5-1.5b-instruct", "infamily", 2, -0.5),
        ("llama-3.2-1b-instruct", "infamily", 14, -1.0),
        ("llama-3.2-3b-instruct", "infamily", 22, -0.5),
    ],
)
def test_the_published_cells_are_searched_on_problems_that_are_not_reported(
    model: str, vector: str, layer: int, strength: float
) -> None:
    """The layers and strengths of DenseSteer's public code."""
    build = Build.load(ROOT / "export" / model / vector)
    assert (build.larger is not None) == (vector == "infamily")
    sweep = build.recipe.sweep
    assert sweep
    assert sweep.layers == tuple(range(1, build.model.blocks or 0))
    assert layer in sweep.layers
    assert strength in parse_strengths(sweep.strengths)
    assert (sweep.task, sweep.split) == ("gsm8k", "train")
    assert build.recipe.parity.task != sweep.task


def test_the_tables_of_a_build_are_read_and_have_defaults(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        'model = "m"\nvector = "v.gguf"\nphase = "all"\n[pairs]\ntask = "gsm8k"\nquant = "Q8_0"\n'
        'keep_lowest = 40\nmax_nll_ratio = 1.5\n[sweep]\ntask = "gsm8k"\nstrengths = "1:3:1"\n'
    )
    recipe = BuildRecipe.load(tmp_path)
    assert recipe.pairs == PairTable(
        task="gsm8k", split=None, count=50, quant="Q8_0", max_tokens=None, rewriter=None, base_url=None,
        rules="conservative", candidates=1, larger=None, larger_quant=None,
        numbers=True, max_nll_ratio=1.5, keep_lowest=40,
    )  # fmt: skip
    assert (recipe.extract.method, recipe.extract.pooling, recipe.extract.quant) == (
        "mean_difference",
        "last",
        None,
    )
    assert recipe.sweep
    assert (recipe.sweep.layers, recipe.sweep.dev, recipe.sweep.test, recipe.sweep.rule) == (
        None,
        100,
        200,
        "accuracy",
    )
    assert (recipe.parity.quants, recipe.parity.texts) == (None, 16)
    assert (recipe.layer, recipe.strength) == (None, None)


def test_what_was_chosen_is_filled_in_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('# mine\nmodel = "m"\nlayer = 3  # by hand\nlayers = "1"\n\n  [sweep]\nlayer = 9\n')
    for strength in (0.5, -1.25):
        fill(tmp_path, layer=7, strength=strength, chosen='so "it" was')
        assert path.read_text() == (
            '# mine\nmodel = "m"\nlayer = 7  # by hand\nlayers = "1"\n'
            f'strength = {strength}\nchosen = "so \\"it\\" was"\n\n  [sweep]\nlayer = 9\n'
        )
    path.write_text('model = "m"')
    fill(tmp_path, layer=0, strength=1.0, chosen="")
    assert path.read_text() == 'model = "m"\nlayer = 0\nstrength = 1.0\nchosen = ""\n'


def test_a_string_that_looks_like_a_table_or_a_key_stays_a_string(tmp_path: Path) -> None:
    text = 'model = """\n[m]\nlayer = 1\n"""\n'
    tables = '\n[pairs]\ntask = "a"  # layer = 2\n'
    (tmp_path / "recipe.toml").write_text(text + tables)
    fill(tmp_path, layer=7, strength=2.0, chosen="[x]")
    assert (tmp_path / "recipe.toml").read_text() == text + 'layer = 7\nstrength = 2.0\nchosen = "[x]"\n' + tables
    fill(str(tmp_path), layer=8, strength=2.0, chosen="[x]")
    assert "layer = 8\n" in (tmp_path / "recipe.toml").read_text()


def test_a_damaged_recipe_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("layer = \n")
    with pytest.raises(EdgeSteerError, match="is not TOML"):
        fill(tmp_path, layer=7, strength=2.0, chosen="")
    assert (tmp_path / "recipe.toml").read_text() == "layer = \n"
