import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
import transformers

from edge_steer.core.architectures import GGUF_NAMES
from edge_steer.core.backend import Backend, Request, Tokens
from edge_steer.core.errors import ModelError, RequestError, VectorError
from edge_steer.core.sampling import Sampling
from edge_steer.core.stats import log_softmax
from edge_steer.core.steering import Steering
from edge_steer.core.vector import ModelIdentity, Phase, SteeringVector
from edge_steer.reference import decoding
from edge_steer.reference import model as reference_model
from edge_steer.reference.model import Reference

QUESTIONS = (
    "Mia has 3 apples.",
    "Ben has 41 cups. Ben buys 2 boxes of 4 cups. How many cups does Ben have now?",
    "Why?",
)


def vector(model: ModelIdentity, layers: tuple[int, ...] = (1, 3), seed: int = 0, norm: float = 20.0) -> SteeringVector:
    rng = np.random.default_rng(seed)
    directions = {layer: rng.standard_normal(model.hidden_size).astype(np.float32) for layer in layers}
    return SteeringVector({layer: norm * d / np.linalg.norm(d) for layer, d in directions.items()}, model)


def prompts(tiny: Reference) -> list[Tokens]:
    return [tiny.chat([{"role": "user", "content": question}]) for question in QUESTIONS]


def mixed(tiny: Reference) -> list[Request]:
    """Requests that differ in length, vector, strength, layers and phase."""
    one, two, three = prompts(tiny)
    first, second = vector(tiny.model), vector(tiny.model, (0, 4), seed=1)
    return [
        Request(one, 9),
        Request(two, 12, (Steering(first, 1.0, phase="all"),)),
        Request(three, 7, (Steering(first, 1.0, phase="generated"),)),
        Request(two, 5, (Steering(first, -0.5, layers=(3,)), Steering(second, 2.0))),
        Request(one, 12, (Steering(second, 0.7, phase="generated"),), Sampling(temperature=1.0, seed=5)),
        Request(three, 12, (Steering(first, 0.3),), Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.02)),
    ]


def test_is_a_backend_with_an_identity(tiny: Reference, tiny_folder: Path) -> None:
    backend: Backend = tiny
    model = backend.model
    assert (model.name, model.architecture, model.hidden_size, model.block_count) == ("tiny", "qwen2", 64, 5)
    assert model.revision and len(model.revision) == 64
    assert Reference.load(str(tiny_folder)).model == model


def test_logits_equal_transformers_own_and_are_not_flat(tiny: Reference, tiny_folder: Path) -> None:
    tokens = prompts(tiny)[1]
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        whole = network(torch.tensor([tokens])).logits[0].numpy()
    found = tiny.logits(tokens, 10)
    assert found.dtype == np.float32 and found.shape == (len(tokens) - 9, whole.shape[1])
    np.testing.assert_allclose(found, whole[9:], atol=2e-5)
    assert whole.std() > 0.5


def test_nll_is_the_log_softmax_of_the_logits_in_pieces_too(tiny: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, prompt = prompts(tiny)[1], 7
    steering = [Steering(vector(tiny.model), phase="generated")]
    logits = tiny.logits(tokens, prompt, steering)
    expected = -log_softmax(logits)[np.arange(len(tokens) - prompt), tokens[prompt:]]
    np.testing.assert_allclose(tiny.nll(tokens, prompt, steering), expected, atol=1e-6)
    monkeypatch.setattr(reference_model, "LOGITS_BYTES", 4 * logits.shape[1] * 3)
    np.testing.assert_allclose(tiny.logits(tokens, prompt, steering), logits, atol=2e-5)
    np.testing.assert_allclose(tiny.nll(tokens, prompt, steering), expected, atol=1e-5)
    assert tiny.nll(tokens, len(tokens)).shape == (0,)


@pytest.mark.parametrize("phase", ["all", "generated"])
def test_steering_adds_exactly_the_offset_at_the_positions_of_its_phase(tiny: Reference, phase: Phase) -> None:
    tokens, prompt = prompts(tiny)[1], 12
    steering = Steering(vector(tiny.model, (2,)), 1.5, phase=phase)
    before = tiny.record(tokens, [1, 2, 3], prompt=prompt)
    after = tiny.record(tokens, [1, 2, 3], prompt=prompt, steering=[steering])
    added = np.zeros_like(before[2])
    added[0 if phase == "all" else prompt - 1 :] = steering.offsets()[2]
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_allclose(after[2], before[2] + added, atol=1e-5)
    changed = np.abs(after[3] - before[3]).max(axis=1) > 1e-3
    assert changed.tolist() == (np.abs(added).max(axis=1) > 0).tolist()


def test_no_hook_stays_even_while_a_caller_is_told_of_a_completion(tiny: Reference) -> None:
    steered = Request(prompts(tiny)[0], 4, (Steering(vector(tiny.model)),))

    def refuse(_index: int, _text: str) -> None:
        raise KeyboardInterrupt

    unsteered = tiny.logits(steered.prompt, 1)
    again = []
    tiny.generate([steered], on_done=lambda *_: again.append(tiny.logits(steered.prompt, 1)))
    np.testing.assert_array_equal(again[0], unsteered)
    with pytest.raises(KeyboardInterrupt):
        tiny.generate([steered], on_text=refuse)
    assert not any(block._forward_hooks for block in tiny._blocks)


def test_a_mixed_batch_gives_what_each_request_gives_alone(tiny: Reference) -> None:
    requests = mixed(tiny)
    alone = [tiny.generate([request])[0] for request in requests]
    together = tiny.generate(requests)
    assert together == alone
    assert tiny.generate(requests, batch=2) == alone
    assert tiny.generate(requests[::-1]) == alone[::-1]
    assert [len(completion.tokens) for completion in alone] == [9, 12, 7, 5, 12, 12]
    assert alone[1].tokens[:7] != tiny.generate([replace(requests[1], steering=())])[0].tokens[:7]


def test_cached_decoding_equals_one_full_forward_pass_in_both_phases(tiny: Reference) -> None:
    """Greedy tokens under a KV cache and left padding are the argmax of the teacher-forced, steered logits."""
    requests = [request for request in mixed(tiny) if not request.sampling.temperature]
    for request, completion in zip(requests, tiny.generate(requests), strict=True):
        logits = tiny.logits(request.prompt + completion.tokens, len(request.prompt), request.steering)
        assert tuple(logits[:-1].argmax(axis=1)) == completion.tokens
        margin = np.sort(logits[:-1], axis=1)
        assert (margin[:, -1] - margin[:, -2]).min() > 2e-5, "the prompts of this test must leave no near-ties"


def test_the_two_phases_and_a_neighbouring_layer_differ(tiny: Reference) -> None:
    tokens, made = prompts(tiny)[1], vector(tiny.model, (2,))
    moved = SteeringVector({3: made.directions[2]}, tiny.model)
    whole = tiny.logits(tokens, 12, [Steering(made)])
    for other in (Steering(made, phase="generated"), Steering(moved)):
        assert np.abs(tiny.logits(tokens, 12, [other]) - whole).max() > 0.1
    np.testing.assert_array_equal(tiny.logits(tokens, 12, [Steering(made, 0.0)]), tiny.logits(tokens, 12))


def ending(tiny: Reference) -> Steering:
    """Steering that makes the end token the likeliest: the tied head's own row for it, added after the last block."""
    row = tiny._network.lm_head.weight[min(tiny._vocabulary.end_tokens)].detach().numpy()
    return Steering(SteeringVector({4: 1000 * row}, tiny.model))


def test_the_end_token_ends_a_row_and_is_no_part_of_it(tiny: Reference) -> None:
    one, two, _ = prompts(tiny)
    done: list[int] = []
    requests = [Request(two, 6), Request(one, 6, (ending(tiny),)), Request(one, 3)]
    found = tiny.generate(requests, on_done=lambda index, _: done.append(index))
    assert (found[1].tokens, found[1].text, found[1].finish) == ((), "", "stop")
    assert [len(c.tokens) for c in found] == [6, 0, 3] and found[0].finish == "length"
    assert done == [1, 2, 0]
    assert found[0] == tiny.generate([requests[0]])[0]


def test_text_streams_whole_characters_and_ends_before_a_stop_string(tiny: Reference) -> None:
    plain = [Request(prompt, 40, sampling=Sampling(temperature=1.0, seed=3)) for prompt in prompts(tiny)]
    told = ["", "", ""]

    def listen(index: int, text: str) -> None:
        told[index] += text

    full = tiny.generate(plain, listen)
    assert [completion.text for completion in full] == told
    assert [tiny.decode(completion.tokens) for completion in full] == told
    stop = full[1].text[10:14]
    told[:] = ["", "", ""]
    stopped = tiny.generate([replace(request, stop=("zzzz", stop)) for request in plain], listen)
    assert stopped[1].text == told[1] == full[1].text[: full[1].text.index(stop)]
    assert stopped[1].finish == "stop" and len(stopped[1].tokens) < 40
    assert stopped[0].text == told[0]


def test_text_with_a_character_of_several_tokens_is_told_whole(tiny: Reference) -> None:
    text = "1 € ≤ 2"
    tokens = tiny.encode(text, start=False)
    characters = decoding.DecodedCharacters(tiny.decode)
    pieces = [characters.add(token) for token in tokens]
    assert len(tokens) > len(text) and "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces) and characters.finish() == ""
    half = decoding.DecodedCharacters(tiny.decode)
    assert [half.add(token) for token in tokens[:3]] == ["1", " ", ""]
    assert (half.finish(), half.finish()) == ("\ufffd", "")


def test_sampling_is_seeded_and_follows_the_distribution(tiny: Reference) -> None:
    prompt = prompts(tiny)[0]
    requests = [Request(prompt, 1, sampling=Sampling(temperature=0.7, seed=seed)) for seed in range(1500)]
    drawn = Counter(completion.tokens for completion in tiny.generate(requests, batch=256))
    share = np.exp(log_softmax(tiny.logits(prompt, len(prompt)) / 0.7))[0]
    token = int(share.argmax())
    assert abs(drawn[(token,)] / 1500 - share[token]) < 4 * np.sqrt(share[token] * (1 - share[token]) / 1500)
    assert tiny.generate(requests[:3]) == tiny.generate(requests[:3])


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(temperature=5.0, top_k=2), {3, 1}),
        (Sampling(temperature=5.0, top_p=0.55), {3, 1}),
        (Sampling(temperature=5.0, top_p=0.45), {3}),
        (Sampling(temperature=5.0, min_p=0.3), {3, 1, 0}),
    ],
)
def test_top_k_top_p_and_min_p_keep_the_tokens_they_should(sampling: Sampling, allowed: set[int]) -> None:
    logits = torch.tensor([0.2, 0.25, 0.05, 0.5]).log()
    generator = torch.Generator().manual_seed(0)
    assert {decoding.draw(logits, sampling, generator) for _ in range(200)} == allowed


def test_chat_and_encode_give_the_templates_tokens_and_no_second_bos(
    tiny: Reference, tiny_folder: Path, tmp_path: Path
) -> None:
    text = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    assert tiny.chat([{"role": "user", "content": "Hi."}]) == tiny.encode(text)
    assert tiny.decode(tiny.encode(text)) == "user\nHi.\nassistant\n"
    assert tiny.decode(tiny.encode("a , b .")) == "a , b ."
    folder = shutil.copytree(tiny_folder, tmp_path / "with-bos")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(data))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"bos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    started = Reference.load(folder)
    assert started.encode("Mia") == started.encode("<|endoftext|>Mia") == (0, *tiny.encode("Mia"))
    assert started.encode("Mia", start=False) == tiny.encode("Mia")
    assert started.chat([{"role": "user", "content": "Hi."}]) == tiny.encode(text)


def test_requests_that_do_not_fit_end_as_errors_while_the_others_go_on(tiny: Reference) -> None:
    done: list[int] = []
    good = Request(prompts(tiny)[0], 2)
    requests = [Request((5,) * 512), good, Request((100000,)), Request((-1,))]
    found = tiny.generate(requests, on_done=lambda index, _: done.append(index))
    assert [(c.text, c.tokens, c.finish) for c in found[::2]] == [("", (), "error")] * 2
    assert found[0].error.startswith("the prompt has 512 tokens; the context holds 512")
    assert "token 100000 is not in the vocabulary" in found[2].error and "token -1 is not" in found[3].error
    assert found[1] == tiny.generate([good])[0] and not found[1].error
    assert sorted(done) == [0, 1, 2, 3]
    assert len(tiny.generate([Request((5,) * 508, 50)])[0].tokens) <= 4


def test_a_vector_of_another_model_is_refused_before_anything_runs(tiny: Reference) -> None:
    done: list[int] = []
    other = Steering(vector(ModelIdentity("other", "llama", 64, 5)))
    with pytest.raises(VectorError, match="is of other"):
        tiny.generate(
            [Request((5,) * 512), Request((5,), 2), Request((5,), steering=(other,))],
            on_done=lambda index, _: done.append(index),
        )
    assert not done


def test_logprobs_are_those_of_the_steered_logits_before_penalties_and_temperature(tiny: Reference) -> None:
    one, two, _ = prompts(tiny)
    drawn = Sampling(temperature=1.5, top_k=50, seed=1, repeat_penalty=1.5)
    requests = [
        Request(one, 6, (Steering(vector(tiny.model)),), drawn, logprobs=3),
        Request(two, 8, (Steering(vector(tiny.model), phase="generated"),), logprobs=0),
        Request(one, 4),
        Request(one, 5, (ending(tiny),), logprobs=2),
    ]
    found = tiny.generate(requests)
    for request, completion in zip(requests[:2], found, strict=False):
        logits = tiny.logits(request.prompt + completion.tokens, len(request.prompt), request.steering)[:-1]
        expected = log_softmax(logits)
        chosen = [entry.logprob for entry in completion.logprobs]
        np.testing.assert_allclose(chosen, expected[np.arange(len(logits)), completion.tokens], atol=1e-4)
        nll = tiny.nll(request.prompt + completion.tokens, len(request.prompt), request.steering)
        np.testing.assert_allclose(chosen, -nll, atol=1e-4)
        assert tuple(entry.token for entry in completion.logprobs) == completion.tokens
        for entry, row in zip(completion.logprobs, expected, strict=True):
            best = np.argsort(-row)[: request.logprobs]
            assert [token for token, _ in entry.top] == list(best)
            np.testing.assert_allclose([logprob for _, logprob in entry.top], row[best], atol=1e-4)
    assert found[2].logprobs == () == found[3].logprobs and found[3].tokens == ()


def test_penalties_follow_the_formula_one_token_at_a_time() -> None:
    logits = torch.tensor([2.0, -1.0, 0.0, 3.0, 1.0])
    sampling = Sampling(repeat_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5)
    found = decoding.penalised(logits, [0, 1, 1, 2, 3, 3, 3], sampling)
    expected = [2 / 2 - 0.25 - 0.5, -1 * 2 - 0.5 - 0.5, 0 - 0.25 - 0.5, 3 / 2 - 0.75 - 0.5, 1]
    np.testing.assert_allclose(found, expected)


def test_penalties_are_those_of_llama_cpps_own_sampler() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 50).astype(np.float32)
    seen = [int(token) for token in rng.integers(0, 12, 40)]
    for last, sampling in [
        (40, Sampling(repeat_penalty=1.3, repeat_last_n=64)),
        (10, Sampling(repeat_penalty=0.7, frequency_penalty=0.4, presence_penalty=-0.9, repeat_last_n=10)),
    ]:
        data = (llama_cpp.llama_token_data * 50)(*((i, logit, 0.0) for i, logit in enumerate(logits.tolist())))
        array = llama_cpp.llama_token_data_array(data=data, size=50, selected=-1, sorted=False)
        sampler = llama_cpp.llama_sampler_init_penalties(
            50,
            sampling.repeat_last_n,
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )
        for token in seen:
            llama_cpp.llama_sampler_accept(sampler, token)
        llama_cpp.llama_sampler_apply(sampler, array)
        llama_cpp.llama_sampler_free(sampler)
        found = decoding.penalised(torch.from_numpy(logits), seen[-last:], sampling)
        np.testing.assert_allclose(found, [entry.logit for entry in data], rtol=1e-6)


@pytest.mark.parametrize("penalties", [Sampling(repeat_penalty=3.0, repeat_last_n=9), Sampling(presence_penalty=50.0)])
def test_penalties_look_back_over_prompt_and_answer_at_temperature_0_too(tiny: Reference, penalties: Sampling) -> None:
    prompt = prompts(tiny)[0]
    (plain,) = tiny.generate([Request(prompt, 12)])
    (found,) = tiny.generate([Request(prompt, 12, sampling=penalties)])
    logits = tiny.logits(prompt + found.tokens, len(prompt))
    for place, token in enumerate(found.tokens):
        seen = (prompt + found.tokens[:place])[-penalties.repeat_last_n :]
        scores = logits[place].copy()
        for old in set(seen):
            scores[old] = (
                scores[old] / penalties.repeat_penalty if scores[old] > 0 else scores[old] * (penalties.repeat_penalty)
            )
            scores[old] -= penalties.presence_penalty
        assert scores.argmax() == token
    assert found.tokens != plain.tokens


def test_a_completion_tells_its_own_seconds(tiny: Reference) -> None:
    slow, fast = tiny.generate([Request(prompts(tiny)[0], 40), Request(prompts(tiny)[0], 1)])
    assert 0 < fast.seconds < slow.seconds


def test_logits_and_record_refuse_what_is_not_there(tiny: Reference) -> None:
    for prompt in (0, 4):
        with pytest.raises(RequestError, match="need 1 <= prompt <= tokens <= 512"):
            tiny.logits((5, 6, 7), prompt)
    with pytest.raises(RequestError, match="need 1 <= prompt"):
        tiny.nll((5,) * 513, 1)
    with pytest.raises(VectorError, match="layer 5 asked; tiny has blocks 0-4"):
        tiny.record((5, 6), [5])
    with pytest.raises(RequestError, match="position 2 asked; the tokens have positions 0-1"):
        tiny.record((5, 6), [1], [2])


def test_record_gives_chosen_positions(tiny: Reference) -> None:
    tokens = prompts(tiny)[0]
    whole = tiny.record(tokens, [0, 4])
    some = tiny.record(tokens, [4], [len(tokens) - 1, 0])
    assert whole[0].shape == (len(tokens), 64)
    np.testing.assert_array_equal(some[4], whole[4][[-1, 0]])


def test_names_of_architectures_are_not_llama_cpps_already() -> None:
    assert not set(GGUF_NAMES) & set(gguf.MODEL_ARCH_NAMES.values())


def refusal(source: str | Path, **options: str) -> str:
    with pytest.raises(ModelError) as caught:
        Reference.load(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_loaded_is_refused_in_one_line(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert "neither a folder" in refusal(tmp_path / "missing")
    assert "neither a folder" in refusal("missing")
    assert "cannot fetch no-such/model from the Hugging Face hub" in refusal("no-such/model")
    assert "no dtype 'float8'" in refusal(tiny_folder, dtype="float8")
    assert "cannot be loaded" in refusal(tiny_folder, device="nowhere")
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded as a causal language model" in refusal(tmp_path / "empty")


def test_a_hub_id_is_loaded_from_the_cache_and_named_by_its_commit(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit, repository = "a" * 40, tmp_path / "models--org--tiny"
    shutil.copytree(tiny_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    loaded = Reference.load("org/tiny").model
    assert (loaded.name, loaded.revision) == ("org/tiny", commit)
    assert Reference.load("org/tiny", revision=commit).model == loaded
    assert "cannot fetch org/tiny" in refusal("org/tiny", revision="b" * 40)


def test_damaged_or_pickled_weights_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    weights = (tiny_folder / "model.safetensors").read_bytes()
    folder = shutil.copytree(tiny_folder, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "cannot be loaded" in refusal(folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    assert "cannot be loaded" in refusal(folder)
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6, "layer_types": None}))
    assert "lacks weights its config.json asks for: model.layers.5" in refusal(folder)


def test_a_model_without_a_chat_template_serves_raw_prompts_only(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "raw")
    (folder / "chat_template.jinja").unlink()
    raw = Reference.load(folder)
    assert len(raw.generate([Request(raw.encode("Mia has"), 3)])[0].tokens) == 3
    with pytest.raises(ModelError, match="raw has no chat template"):
        raw.chat([{"role": "user", "content": "Hi."}])
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(ModelError, match="refuses these messages: no system role"):
        Reference.load(folder).chat([{"role": "system", "content": "Hi."}])


def test_half_precision_is_near_float32(tiny: Reference, tiny_folder: Path) -> None:
    tokens, steering = prompts(tiny)[0], [Steering(vector(tiny.model))]
    half = Reference.load(tiny_folder, dtype="bfloat16").logits(tokens, 5, steering)
    assert half.dtype == np.float32
    assert np.abs(half - tiny.logits(tokens, 5, steering)).mean() < 0.1


def test_float64_for_a_while_leaves_the_weights_as_they_were(tiny_folder: Path) -> None:
    """And leaves them such that a gradient can be taken through them."""
    reference = Reference.load(tiny_folder)
    tokens = prompts(reference)[0]
    weights = list(reference._network.parameters())
    before = [weight.detach().clone() for weight in weights]
    with reference.in_float64():
        wide = reference.logits(tokens, 5)
    assert 0 < np.abs(wide - reference.logits(tokens, 5)).max() < 1e-3
    for weight, was in zip(weights, before, strict=True):
        assert weight.dtype == torch.float32
        assert torch.equal(weight, was)
        assert not weight.is_inference()
        assert not weight.data.is_inference()


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        (Sampling(typical_p=0.5), "typical_p"),
        (Sampling(temperature=1, grammar='root ::= "a"', logit_bias=((3, 1.0),)), "logit_bias, grammar"),
        (Sampling(order=("temperature",)), "order"),
    ],
)
def test_sampling_that_only_llama_cpp_has_is_refused_in_one_line(
    tiny: Reference, sampling: Sampling, named: str
) -> None:
    prompt = tiny.encode("3 + 4")
    refused, served = tiny.generate([Request(prompt, 4, sampling=sampling), Request(prompt, 4)])
    assert refused.finish == "error"
    assert refused.error.startswith(f"PyTorch has no {named};")
    assert "\n" not in refused.error
    assert served.finish != "error"
