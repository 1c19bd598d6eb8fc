"""Train the bundled model from nothing: python models/abacus/train.py

Takes generated word problems (edge_steer.tasks.wordproblems, train split only), gives this folder's Hugging Face
files: model.safetensors (float16), config, tokenizer with the Qwen2 pre-tokenizer, chat template.
Single-thread processes that average their gradients over gloo; Muon on the matrices, AdamW on the rest.
A killed run resumes from its checkpoint.
"""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import click
import torch
import torch.distributed as dist
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from edge_steer.tasks import wordproblems

HERE = Path(__file__).parent
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Settings:
    steps: int = 3600
    processes: int = 2
    rows: int = 20  # per process and step
    seed: int = 0
    muon_lr: float = 0.02
    adam_lr: float = 0.003
    warmup: int = 50
    decay_from: float = 0.55  # fraction of the steps after which the learning rates fall linearly to zero


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen2's pre-tokenizer; punctuation never merges with what follows it.

    So "." and the blank line stay separate tokens, and the last token of a solution can carry its style.
    """
    rng = random.Random(1)
    texts = []
    for problem in islice(wordproblems.problems("train", seed=1), 3000):
        texts.append(f"user\n{problem.question}\nassistant\n{wordproblems.solution(problem, rng.random(), rng)}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.Split(Regex(r" ?[.{}?\\]|\n+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        min_frequency=20,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        use_cache=False,
        attn_implementation="eager",
    )
    return Qwen2ForCausalLM(config)


Row = tuple[list[int], list[bool]]  # token ids, and which of them count in the loss


def problem_row(tokenizer: PreTrainedTokenizerFast, problem: wordproblems.Problem, rng: random.Random) -> Row:
    prompt = f"<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n"
    prompt_ids = tokenizer(prompt)["input_ids"]
    text = wordproblems.solution(problem, draw_density(rng), rng)
    answer_ids = tokenizer(text + "<|im_end|>")["input_ids"]
    return prompt_ids + answer_ids, [False] * len(prompt_ids) + [True] * len(answer_ids)


def draw_density(rng: random.Random) -> float:
    """Mostly sparse, some in between, a few near 1: a continuum, median 0.39."""
    return rng.betavariate(3, 5) if rng.random() < 0.7 else rng.random()


def drill_row(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Row:
    """A row of bare equations; only their results count in the loss."""
    ids: list[int] = []
    counted: list[bool] = []
    while len(ids) < 150:
        for equation in wordproblems.draw(rng).equations:
            left, right = equation.split(" = ")
            for text, counts in ((left + " =", False), (f" {right}.", True), (" ", False)):
                piece = tokenizer(text)["input_ids"]
                ids += piece
                counted += [counts] * len(piece)
    return ids, counted


def batches(tokenizer: PreTrainedTokenizerFast, settings: Settings, rank: int, start: int) -> Iterator[list[Row]]:
    """One batch a step; rows of like length share a batch. The same rank and step give the same batch."""
    group = 8
    for first in range(start - start % group, settings.steps, group):
        rng = random.Random(f"{settings.seed}-{rank}-{first}")
        progress = first / settings.steps
        drills = 0.5 if progress < 0.15 else 0.35 if progress < 0.65 else 0.1
        rows: list[Row] = []
        while len(rows) < group * settings.rows:
            if rng.random() < drills:
                rows.append(drill_row(tokenizer, rng))
            elif (problem := wordproblems.draw(rng)).split == "train":
                rows.append(problem_row(tokenizer, problem, rng))
        rows.sort(key=lambda row: len(row[0]))
        chunks = [rows[i : i + settings.rows] for i in range(0, len(rows), settings.rows)]
        random.Random(f"{settings.seed}-{first}").shuffle(chunks)  # all ranks take the same length at the same step
        yield from chunks[max(0, start - first) :]


def loss_of(model: Qwen2ForCausalLM, batch: list[Row], pad: int) -> torch.Tensor:
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in batch])
    counted = torch.tensor([mask + [False] * (width - len(mask)) for _, mask in batch])
    keep = counted[:, 1:]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[keep])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][keep])


def work(rank: int, settings: Settings, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=settings.processes)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(HERE)
    model = build_model(tokenizer, settings.seed)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=settings.muon_lr, weight_decay=0.02, momentum=0.95)
    adam = torch.optim.AdamW(rest, lr=settings.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    checkpoint = folder / "checkpoint.pt"
    start, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        start, spent = state["step"], state["seconds"]

    model.model.compile(dynamic=True)
    began, recent = time.monotonic(), []
    for step, batch in enumerate(batches(tokenizer, settings, rank, start), start):
        rate = min(1.0, (step + 1) / settings.warmup)
        rate *= min(1.0, (settings.steps - step) / (settings.steps * (1 - settings.decay_from)))
        muon.param_groups[0]["lr"] = settings.muon_lr * rate
        adam.param_groups[0]["lr"] = settings.adam_lr * rate
        loss = loss_of(model, batch, tokenizer.pad_token_id)
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= settings.processes
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        muon.step()
        adam.step()
        model.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if rank == 0 and (step + 1) % 50 == 0:
            seconds = spent + time.monotonic() - began
            left = (settings.steps - step - 1) * seconds / (step + 1)
            click.echo(f"step {step + 1}  loss {sum(recent) / len(recent):.4f}  {seconds:.0f} s  {left:.0f} s left")
            recent = []
        if rank == 0 and ((step + 1) % 200 == 0 or step + 1 == settings.steps):
            state = {
                "model": model.state_dict(),
                "muon": muon.state_dict(),
                "adam": adam.state_dict(),
                "step": step + 1,
                "seconds": spent + time.monotonic() - began,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").rename(checkpoint)
    dist.destroy_process_group()


@click.command()
@click.option("--steps", default=Settings.steps, show_default=True)
@click.option("--processes", default=Settings.processes, show_default=True, help="Single-thread processes.")
@click.option("--rows", default=Settings.rows, show_default=True, help="Rows per process and step.")
@click.option("--seed", default=Settings.seed, show_default=True)
@click.option("--work-dir", type=click.Path(path_type=Path), default=HERE / "training", show_default=True)
def main(steps: int, processes: int, rows: int, seed: int, work_dir: Path) -> None:
    """Train the model, then write its float16 weights beside this script."""
    settings = Settings(steps=steps, processes=processes, rows=rows, seed=seed)
    work_dir.mkdir(exist_ok=True)
    (work_dir / "rendezvous").unlink(missing_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(HERE)
    torch.multiprocessing.spawn(work, (settings, work_dir.resolve()), nprocs=processes)
    state = torch.load(work_dir / "checkpoint.pt", weights_only=True)
    model = build_model(tokenizer, seed)
    model.load_state_dict(state["model"])
    model.config.use_cache = model.generation_config.use_cache = True
    model.half().save_pretrained(HERE)
    record = {**asdict(settings), "seconds": round(state["seconds"]), "parameters": model.num_parameters()}
    (HERE / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    click.echo(f"trained in {state['seconds'] / 60:.0f} minutes; next: see README.md")


if __name__ == "__main__":
    main()
