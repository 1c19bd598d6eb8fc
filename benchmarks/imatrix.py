"""An importance matrix of a model, measured in PyTorch: the mean squared input of each linear layer.

Takes a folder of Hugging Face weights or a GGUF, whose weights are dequantised, and texts; writes the GGUF that
llama-imatrix would: `in_sum2` and `counts` of each weight, under llama.cpp's names. Only for models whose weights are
all plain linear layers; a mixture of experts has others.

    python benchmarks/imatrix.py models/abacus models/abacus/pairs.jsonl -o imatrix.gguf
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
import torch

from edge_steer.core.architectures import gguf_name
from edge_steer.core.errors import EdgeSteerError
from edge_steer.models.load import load
from edge_steer.parity import texts as parity_texts
from edge_steer.reference.model import Reference
from edge_steer.storage.files import replacing


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("texts", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
def main(model: Path, texts: Path, out: Path) -> None:
    reference = load(model, runtime="torch")
    assert isinstance(reference, Reference)
    measure(reference.network, [text.tokens for text in parity_texts.read_texts(texts, reference)], out)
    click.echo(out)


def measure(network: Any, texts: list[tuple[int, ...]], target: Path) -> None:
    """Write the importance matrix of a network's weights on these token ids."""
    names = gguf_names(network)
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(1))
    counts: dict[str, int] = defaultdict(int)

    def look(name: str) -> object:
        def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            sums[name] = sums[name] + rows.double().square().sum(0)
            counts[name] += len(rows)

        return hook

    for module_name, module in network.named_modules():
        if module_name in names:
            module.register_forward_pre_hook(look(names[module_name]))
    with torch.inference_mode():
        for tokens in texts:
            network.get_decoder()(torch.tensor([tokens]))
    with replacing(target) as temporary:
        writer = gguf.GGUFWriter(temporary, "")
        writer.add_type("imatrix")
        for name in sorted(sums):
            writer.add_tensor(f"{name}.in_sum2", sums[name].numpy().astype(np.float32)[None])
            writer.add_tensor(f"{name}.counts", np.full((1, 1), counts[name], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def gguf_names(network: torch.nn.Module) -> dict[str, str]:
    """Linear layers of the blocks -> llama.cpp's names of their weights. Errors: EdgeSteerError for another kind."""
    config = network.config.get_text_config(decoder=True)
    named = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
    if (architecture := named.get(gguf_name(config.model_type))) is None:
        raise EdgeSteerError(f"llama.cpp has no name for {config.model_type}; measure this model with llama-imatrix")
    mapped = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    found = {}
    for name, module in network.get_decoder().named_modules(prefix="model"):
        if isinstance(module, torch.nn.Linear):
            found[name] = mapped.get_name(f"{name}.weight", try_suffixes=(".weight",))
        elif any(p.ndim > 1 for p in module.parameters(recurse=False)) and not isinstance(module, torch.nn.Embedding):
            raise EdgeSteerError(f"{name} is no linear layer; measure this model with llama-imatrix")
    if missing := [name for name, known in found.items() if known is None]:
        raise EdgeSteerError(f"llama.cpp has no name for {missing[0]}; measure this model with llama-imatrix")
    return found


if __name__ == "__main__":
    main()
