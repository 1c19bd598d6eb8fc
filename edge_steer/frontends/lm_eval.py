"""`edge-steer lm-eval`: a steered model in the lm-evaluation-harness."""

import click

from edge_steer.core.errors import need


@click.command("lm-eval", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[LM_EVAL_ARGUMENTS]...")
def lm_eval(arguments: tuple[str, ...]) -> None:
    """Run the lm-evaluation-harness on a steered GGUF; `edge-steer lm-eval run --help` shows its options.

    edge-steer lm-eval run --model_args model=FILE.gguf,vector=FILE.gguf,strength=2,layers=3,phase=generated
    --tasks gsm8k
    """
    need("lm-eval")
    from edge_steer.plugins import lm_eval_model

    lm_eval_model.run(arguments)
