"""`edge-steer lm-eval`: hands over to the lm-evaluation-harness, which then knows the model edge_steer."""

import click

from edge_steer.core.errors import need


@click.command(
    "lm-eval",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[--register | --unregister]",
)
@click.option("--register", is_flag=True, help="Let a plain `lm_eval --model edge_steer` work in this environment.")
@click.option("--unregister", is_flag=True, help="Undo --register.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[LM_EVAL_ARGUMENTS]...")
def lm_eval(register: bool, unregister: bool, arguments: tuple[str, ...]) -> None:
    """Run the lm-evaluation-harness on a steered GGUF; `edge-steer lm-eval run --help` shows its options.

    edge-steer lm-eval run --model_args model=FILE.gguf,vector=FILE.gguf,strength=2,layers=3,phase=generated
    --tasks gsm8k
    """
    from edge_steer.plugins import lm_eval_register

    if register or unregister:
        if arguments or (register and unregister):
            raise click.UsageError("--register and --unregister each stand alone")
        if register:
            click.echo(f"wrote {lm_eval_register.register()}")
        else:
            click.echo("removed" if lm_eval_register.unregister() else "there was nothing to remove")
        return
    need("lm-eval")
    from edge_steer.plugins import lm_eval_model

    lm_eval_model.run(arguments)
