"""Fixtures that several test files share, and a core for each process that runs tests."""

import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from page_visit import browser, opened, page_server  # noqa: F401
from serving_server import engine, http, server, start  # noqa: F401

from edge_steer.core.vector import SteeringVector
from edge_steer.extraction.extract import extract
from edge_steer.models.quantize import quantize
from edge_steer.pairs.pair import read_pairs
from edge_steer.reference.model import Reference
from edge_steer.vectors import gguf_writer

ABACUS = Path(__file__).parent.parent / "models" / "abacus"

torch.set_num_threads(1)  # on tensors this small a second thread costs more than it brings


def pytest_configure() -> None:
    """Give each of several test processes a core of its own: ggml's threads spin, and would wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="Tests too that take long and whose path another covers.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--runslow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow, and another test covers its path; --runslow runs it"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a random Qwen2 model of 5 blocks, float32, whose logits are not flat."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ABACUS / name, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.15,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Reference:
    return Reference.load(tiny_folder)


@pytest.fixture(scope="session")
def bundled_f16() -> Path:
    return ABACUS / "abacus-F16.gguf"


@pytest.fixture(scope="session")
def bundled_f32(bundled_f16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float16 weights of the bundled model, widened to float32 without loss."""
    return quantize(bundled_f16, "F32", tmp_path_factory.mktemp("f32") / "abacus-F32.gguf")


@pytest.fixture(scope="session")
def bundled() -> Reference:
    return Reference.load(ABACUS)


@pytest.fixture(scope="session")
def bundled_vector(bundled: Reference) -> SteeringVector:
    return extract(bundled, read_pairs(ABACUS / "pairs.jsonl"))


@pytest.fixture(scope="session")
def bundled_vector_gguf(bundled_vector: SteeringVector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_writer.write(bundled_vector, tmp_path_factory.mktemp("vector") / "vector.gguf").path
