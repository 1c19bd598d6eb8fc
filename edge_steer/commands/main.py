"""The command line: parse, call, print. Results go to stdout, progress and errors to stderr.

Heavy packages are imported inside the commands, so that --help answers at once.
"""

import click

from edge_steer.commands.build import build, demo
from edge_steer.commands.contrast import contrast
from edge_steer.commands.eval import compare_command, eval_command, perplexity
from edge_steer.commands.extract import extract
from edge_steer.commands.lens import lens
from edge_steer.commands.models import convert, info, quantize
from edge_steer.commands.pairs import pairs_group
from edge_steer.commands.parity import parity
from edge_steer.commands.sweep import plot, sweep, table
from edge_steer.commands.train import train_group
from edge_steer.commands.vectors import export, import_command, vector_group
from edge_steer.frontends.chat import chat
from edge_steer.frontends.lm_eval import lm_eval
from edge_steer.frontends.run import run
from edge_steer.frontends.serve import serve
from edge_steer.terminal.group import Group


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


pairs_group.add_command(contrast)
main.add_commands(
    "Use a steered model",
    {
        run: "Answer a prompt with a model, steered or not.",
        chat: "Chat with a model and change its steering as you go.",
        serve: "Serve a model to OpenAI, llama-server and Ollama clients.",
        lm_eval: "Run the lm-evaluation-harness on a steered model.",
    },
)
main.add_commands(
    "Make a vector",
    {
        demo: "The whole way on the bundled model: extract, steer, compare.",
        pairs_group: "Make, rewrite, check and look at contrastive pairs.",
        extract: "Extract a vector from a model and pairs.",
        train_group: "Train vectors by reinforcement learning.",
        sweep: "Find the layer and strength that work best on a task.",
        build: "All of these from one recipe, end to end.",
    },
)
main.add_commands(
    "Vector files",
    {
        import_command: "Read a vector file of another tool.",
        export: "Write a vector for llama.cpp's own tools or repeng.",
        vector_group: "Add, subtract, scale, project or tune vectors.",
        lens: "What a vector says in tokens, layer by layer.",
    },
)
main.add_commands(
    "Measure",
    {
        eval_command: "Accuracy, steps, tokens and density on tasks, steered or not.",
        compare_command: "Compare two results of eval, problem by problem.",
        table: "A paper's main table, published and measured.",
        plot: "Plot models against each other: density, steps, size, accuracy.",
        perplexity: "How likely the model holds its own texts, steered or not.",
        parity: "Prove that a quantised model is steered as its reference is.",
    },
)
main.add_commands(
    "Models",
    {
        info: "Describe a model, a vector file or this machine.",
        convert: "Make a GGUF of a Hugging Face model.",
        quantize: "Make a smaller GGUF of a model.",
    },
)
