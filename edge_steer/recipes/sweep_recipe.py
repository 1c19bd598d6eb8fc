"""The choice of a sweep as a recipe: recipe.toml and the tuned vector beside it.

Takes the results of a sweep, writes a folder that `--vector` and a build take. It runs no model.
"""

from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.vector import SteeringVector
from edge_steer.evaluation.results import model_of
from edge_steer.evaluation.sweep_results import SweepResults
from edge_steer.recipes.recipe import VectorRecipe
from edge_steer.vectors.read import load
from edge_steer.vectors.write import save


def write_recipe(results: SweepResults, folder: str | Path) -> Path:
    """Write folder/recipe.toml with the chosen layer and strength, and that layer's vector, tuned; the recipe's path.

    The vector is a control vector, or at layer 0, which those have not, a steering vector. Errors: EdgeSteerError if
    nothing was chosen but the unsteered model, or for another recipe or vector there: none is overwritten.
    """
    folder, vector = Path(folder), results.tuned_vector
    tuning = vector.tuning
    if tuning is None:
        raise ValueError("the vector of a sweep is tuned")
    [layer] = tuning.layers
    path = folder / ("vector.gguf" if layer else "vector.safetensors")
    if path.exists() and not _same(load(path), vector):
        raise EdgeSteerError(f"{path} is another vector; delete it, or name another folder")
    recipe = VectorRecipe(
        folder=folder,
        model=results.header["model"]["name"],
        vector=path.name,
        layer=layer,
        strength=tuning.strength,
        phase=tuning.phase,
        pairs=None,
        chosen=(
            f"edge-steer sweep: {model_of(results.header)}, "
            f"{results.problems} {results.header['task']['name']} problems; {results.rule}"
        ),
    )
    recipe_path = recipe.save()
    if not path.exists():
        save(vector, path)
    return recipe_path


def _same(a: SteeringVector, b: SteeringVector) -> bool:
    return a.layers == b.layers and all((a.directions[layer] == b.directions[layer]).all() for layer in a.layers)
