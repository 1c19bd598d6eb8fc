"""Programs that people use with such a server: openai, lm-eval, and the calls that Open WebUI makes."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from paths import ABACUS, DENSE, ROOT
from serving_server import QUESTION, Server, Start

from edge_steer.core.backend import Request
from edge_steer.core.steering import Steering
from edge_steer.llama.engine import Engine
from edge_steer.vectors.read import load

MESSAGES: Any = [{"role": "user", "content": QUESTION}]


@pytest.mark.parametrize("path", ["/v1", ""])
def test_openais_own_client(server: Server, path: str) -> None:
    client = openai.OpenAI(base_url=server.url + path, api_key="none", max_retries=0)
    steer = {"control_vectors": [{"name": "dense", "scale": 2.0}]}
    answer = client.chat.completions.create(
        model="gpt-4o", messages=MESSAGES, temperature=0, max_tokens=12, logprobs=True, top_logprobs=2, extra_body=steer
    )
    assert answer.model_extra
    assert answer.model_extra["steering"][0]["name"] == "dense"
    assert answer.choices[0].logprobs
    assert answer.usage
    assert answer.usage.completion_tokens == 12
    stream = client.chat.completions.create(
        model="abacus+strong", messages=MESSAGES, temperature=0, max_tokens=12, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 12
    assert "abacus+strong" in [model.id for model in client.models.list()]
    with pytest.raises(openai.BadRequestError, match="there are: dense"):
        client.chat.completions.create(model="abacus", messages=MESSAGES, extra_body={"steering": "4 dance"})
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)


def test_openais_client_gets_text_completions(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    answer = client.completions.create(model="abacus", prompt=QUESTION, max_tokens=0, echo=True, logprobs=1)
    assert answer.choices[0].text == QUESTION
    assert answer.choices[0].logprobs
    assert answer.choices[0].logprobs.tokens
    assert len(answer.choices[0].logprobs.tokens) == len(answer.choices[0].logprobs.token_logprobs or ())


def test_lm_evals_local_completions_score_and_generate(server: Server, engine: Engine) -> None:
    """The harness's own client, without a tokenizer of its own: it sends what its `_model_call` sends."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    tokens = [list(engine.encode(text)) for text in ("3 + 4 = 7", "Tom has 3 apples.")]
    contexts = [3, 2]
    model = LocalCompletionsAPI.__new__(LocalCompletionsAPI)
    model.model = "abacus"
    for vectors, steering in (("abacus", []), ("abacus+strong", [Steering.of(load(DENSE), 2.0)])):
        body = {
            "model": vectors, "prompt": tokens, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234,
            "echo": True,
        }  # fmt: skip
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
        parsed = model.parse_logprobs(answer, tokens=tokens, ctxlens=contexts)
        for (logprob, greedy), row, context in zip(parsed, tokens, contexts, strict=True):
            nll, likeliest = engine.score(tuple(row), 1, steering)
            assert logprob == pytest.approx(-float(nll[context - 1 :].sum()), abs=0.05)
            assert greedy == bool(likeliest[context - 1 :].all())
    body = {"model": "abacus", "prompt": QUESTION, "max_tokens": 8, "temperature": 0, "stop": ["\n\n"], "seed": 1234}
    generated = model.parse_generations(httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json())
    assert generated[0]


def test_a_whole_run_of_lm_eval_scores_a_steered_server(server: Server, engine: Engine, tmp_path: Path) -> None:
    """With `local-completions`: each choice has the log-probability that the steered engine gives it."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    rows: Any = [{"context": f"3 + {n} =", "choices": [f" {3 + n}", " cups"], "gold": 0} for n in (1, 2, 4)]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(
        f"task: local_sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{context}}"\ndoc_to_choice: "{{choices}}"\n'
        'target_delimiter: ""\ndoc_to_target: gold\nmetric_list: [{metric: acc}]\n'
    )
    for name, steering in (("abacus", []), ("abacus+strong", [Steering.of(load(DENSE), 2.0)])):
        run = lm_eval.simple_evaluate(
            "local-completions",
            model_args={"base_url": f"{server.url}/v1/completions", "model": name, "tokenizer": str(ABACUS)},
            tasks=["local_sums"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )
        assert run
        samples = sorted(run["samples"]["local_sums"], key=lambda sample: sample["doc_id"])
        for row, sample in zip(rows, samples, strict=True):
            for choice, (logprob, _) in zip(row["choices"], sample["filtered_resps"], strict=True):
                context, tokens = engine.encode(row["context"]), engine.encode(row["context"] + choice)
                nll, _ = engine.score(tokens, 1, steering)
                assert logprob == pytest.approx(-float(nll[len(context) - 1 :].sum()), abs=0.05)


def test_a_whole_run_of_lm_eval_chats_with_a_steered_server(server: Server, engine: Engine, tmp_path: Path) -> None:
    """With `local-chat-completions`: each answer is the steered engine's."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    questions = [QUESTION, "Ann has 9 pens and gives 4 to Tom. How many pens does Ann have?"]
    data = tmp_path / "words.jsonl"
    data.write_text("".join(json.dumps({"question": question}) + "\n" for question in questions))
    (tmp_path / "words.yaml").write_text(
        f"task: local_words\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        'output_type: generate_until\ndoc_to_text: "{{question}}"\ndoc_to_target: "7"\n'
        "generation_kwargs: {max_gen_toks: 12, do_sample: false, until: ['never said']}\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    run = lm_eval.simple_evaluate(
        "local-chat-completions",
        model_args={"base_url": f"{server.url}/v1/chat/completions", "model": "abacus+strong"},
        tasks=["local_words"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        apply_chat_template=True,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert run
    steering = (Steering.of(load(DENSE), 2.0),)
    for sample in run["samples"]["local_words"]:
        prompt = engine.chat([{"role": "user", "content": sample["doc"]["question"]}])
        assert sample["resps"] == [[engine.generate([Request(prompt, 12, steering)])[0].text]]


def test_the_curl_lines_of_the_docs_run(start: Start) -> None:
    url = start("--vector", f"dense={DENSE}").url
    page = (ROOT / "docs" / "serve.md").read_text()
    commands = re.findall(r"^    (curl (?:[^\n']|'[^']*')*)$", page, re.MULTILINE)
    assert len(commands) == page.count("    curl ") >= 4
    for command in commands:
        line = command.replace("http://127.0.0.1:8080", url).replace("curl", "curl --silent --fail-with-body", 1)
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout)
        answer = json.loads(done.stdout)
        assert "error" not in answer, (command, answer)


def test_open_webuis_calls(server: Server, http: httpx.Client) -> None:
    """Its model list, its stream with a model's custom parameters, and its "Continue"."""
    models = http.get(f"{server.url}//models").json()["data"]
    assert all(model["id"] and "name" not in model for model in models)
    custom = {"control_vectors": json.loads('[{"name": "dense", "scale": 2.0}]'), "temperature": 0, "max_tokens": 8}
    body = {
        "model": "abacus",
        "stream": True,
        "messages": MESSAGES,
        "stream_options": {"include_usage": True},
        **custom,
    }
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert text
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    begun = [*MESSAGES, {"role": "assistant", "content": text, "reasoning_content": ""}]
    more = {**body, "messages": begun, "stream": False, "continue_final_message": True, "add_generation_prompt": False}
    answer = http.post("/v1/chat/completions", json=more)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]
