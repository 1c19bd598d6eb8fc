"""Golden data of tests/test_peers.py: vector files that other packages made, and the logits they steer to with them.

A random Mistral model of 4 blocks and width 32 is made, in float32, with the bundled model's tokenizer. repeng and
steering-vectors, each in an environment of its own (see extract.py), extract a vector from it, write their own file
and record the logits of their own steered model on a fixed list of tokens. llama-cvector-generator, built from the
installed version's sources, writes its file for the same model as a GGUF; llama.cpp's logits steered by that file
come from llama-perplexity's base file, whose codes are good to about 1e-3.

    python benchmarks/peer_vectors.py        writes tests/vectors/golden/peers anew
"""

import json
import shutil
import tempfile
from pathlib import Path

import click
import extract
import llama_tools
import numpy as np
import torch
import transformers
from control_vector import CHUNK, read_base

from edge_steer.models import convert
from edge_steer.vectors import gguf_writer, read

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "models" / "abacus"
GOLDEN = ROOT / "tests" / "vectors" / "golden" / "peers"
STRENGTH = 2.0
PAIRS = [
    ["Ann has 3 apples and buys 4, so 3 + 4 = 7.", "Ann has 3 apples. She buys 4. First we add. 3 + 4 = 7."],
    ["Tom reads 12 pages a day, 5 * 12 = 60 pages.", "Tom reads 12 pages. There are 5 days. We multiply. 60."],
    ["Each box holds 6 pens, 8 boxes hold 48.", "A box holds 6 pens. We have 8 boxes. So 6 times 8. That is 48."],
    ["She pays 9 of 20 and keeps 11.", "She has 20. She pays 9. We subtract. She keeps 11."],
]


@click.command(help=__doc__)
def main() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        folder = model(scratch / "model")
        gguf = convert.convert(folder, GOLDEN / "model-F32.gguf", "F32")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokens = tokenizer(" ".join(positive for positive, _ in PAIRS), add_special_tokens=False).input_ids[:32]
        given = {"pairs": PAIRS, "tokens": tokens, "strength": STRENGTH}
        (GOLDEN / "input.json").write_text(json.dumps(given) + "\n")
        files = {"repeng": "repeng.gguf", "steering-vectors": "steering_vectors.pt"}
        for name, file in files.items():
            worker, logits = Path(__file__).with_name("peer_worker.py"), GOLDEN / f"{name}-logits.npy"
            python = extract.environment(name)
            llama_tools.run(python, worker, name, folder, GOLDEN / "input.json", GOLDEN / file, logits)
        through_repeng(folder, scratch)
        generate(gguf, GOLDEN / "cvector.gguf", scratch)
        perplexity(gguf, GOLDEN / "cvector.gguf", scratch)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(folder / name, GOLDEN / name)
    for path in sorted(GOLDEN.iterdir()):
        click.echo(f"{path.name}  {path.stat().st_size}")


def model(folder: Path) -> Path:
    """A Hugging Face folder with a random model whose logits are not flat."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=None,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    transformers.MistralForCausalLM(config).save_pretrained(folder)
    return folder


def through_repeng(folder: Path, scratch: Path) -> None:
    """The file of steering-vectors, written by us for repeng with layer 0, steers in repeng as in steering-vectors."""
    vector = read.load(GOLDEN / "steering_vectors.pt")
    gguf_writer.write(vector, scratch / "for-repeng.gguf", layers=vector.layers, target="repeng", hint="mistral")
    worker, logits = Path(__file__).with_name("peer_worker.py"), scratch / "logits.npy"
    given = GOLDEN / "input.json"
    python = extract.environment("repeng")
    llama_tools.run(python, worker, "repeng-reads", folder, given, scratch / "for-repeng.gguf", logits)
    difference = np.abs(np.load(logits) - np.load(GOLDEN / "steering-vectors-logits.npy")).max()
    click.echo(f"repeng reads our file: max |delta logit| from steering-vectors {difference:.2g}")
    if difference > 1e-4:
        raise click.ClickException("our file for repeng does not steer there as it should")


def generate(gguf: Path, target: Path, scratch: Path) -> None:
    """llama-cvector-generator's file of PAIRS, by its mean method."""
    sides = []
    for side, texts in zip(("positive", "negative"), zip(*PAIRS, strict=True), strict=True):
        path = scratch / f"{side}.txt"
        path.write_text("".join(f"{text}\n" for text in texts))
        sides += [f"--{side}-file", path]
    program = llama_tools.tool("llama-cvector-generator")
    llama_tools.run(program, "-m", gguf, *sides, "--method", "mean", "-o", target, "-t", 1, "-fa", "off", "-c", 512)


def perplexity(gguf: Path, vector: Path, scratch: Path) -> None:
    """Tokens and log-probabilities of llama.cpp itself, steered by the file as it is."""
    text = scratch / "text.txt"
    text.write_text(" ".join(f"{positive} {negative}" for positive, negative in PAIRS) * 40)
    base = scratch / "base.dat"
    settings = ("-c", CHUNK, "-b", CHUNK, "-t", 1, "-fa", "off", "-ctk", "f32", "-ctv", "f32", "--chunks", 1)
    steering = ("--control-vector-scaled", f"{vector}:{STRENGTH}")
    program = llama_tools.tool("llama-perplexity")
    llama_tools.run(program, "-m", gguf, "-f", text, "--kl-divergence-base", base, *settings, *steering)
    tokens, logprobs = read_base(base)
    np.savez(GOLDEN / "llama.cpp.npz", tokens=tokens[0], logprobs=logprobs[:32].astype(np.float32))


if __name__ == "__main__":
    main()
