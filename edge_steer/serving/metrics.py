"""What a server has done, for Prometheus: llama-server's counters by their names, and histograms of waiting times.

Counters only grow: two scrapers do not spoil each other's rates.
"""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from edge_steer.core.backend import Completion
from edge_steer.serving.worker import Running, Worker

CONTENT_TYPE = "text/plain; version=0.0.4"
LONGEST = (  # llama-server has a largest value so far as a counter without the _total of prometheus-client's
    "# HELP llamacpp:n_tokens_max Most tokens of a request, prompt and answer.\n"
    "# TYPE llamacpp:n_tokens_max counter\nllamacpp:n_tokens_max {}\n"
)
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts completions; `text` is what a scrape gets."""

    def __init__(self) -> None:
        self.started = time.time()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens computed.")
        self._cached_tokens = self._counter("prompt_tokens_cached", "Prompt tokens taken from a cache.")
        self._prompt_seconds = self._counter("prompt_seconds", "Seconds of prefill, added up over requests.")
        self._tokens = self._counter("tokens_predicted", "Tokens generated.")
        self._token_seconds = self._counter("tokens_predicted_seconds", "Seconds of generation, added up.")
        self._requests = Counter(
            "edge_steer:requests", "Requests by how they ended.", ("finish",), registry=self._registry
        )
        self._steered = Counter(
            "edge_steer:requests_steered", "Requests that a vector steered.", registry=self._registry
        )
        self._first_token = Histogram(
            "edge_steer:time_to_first_token_seconds",
            "From the request to its first token.",
            registry=self._registry,
            buckets=SECONDS,
        )
        self._seconds = Histogram(
            "edge_steer:request_seconds", "From the request to its end.", registry=self._registry, buckets=SECONDS
        )
        self._steps = self._counter("n_decode", "Steps of the engine: a token of each running request, and prompts.")
        for name in ("draft_tokens", "accepted_tokens", "drafts"):
            self._counter(f"spec_decode_num_{name}", "Of speculative decoding, which this server does not do.")
        self._prompt_rate = self._gauge("prompt_tokens_seconds", "Prompt tokens a second of prefill, since the start.")
        self._token_rate = self._gauge("predicted_tokens_seconds", "Tokens a second of each answer, since the start.")
        self._busy = self._gauge("n_busy_slots_per_decode", "Requests that run in a step, on average.")
        self._longest = 0
        self._processing = self._gauge("requests_processing", "Requests that run.")
        self._deferred = self._gauge("requests_deferred", "Requests that wait.")

    def count(self, running: Running, completion: Completion) -> None:
        """Take one request that ended."""
        timings = completion.timings
        self._requests.labels(completion.finish).inc()
        if running.request.steering:
            self._steered.inc()
        if completion.finish in ("stop", "length"):
            self._prompt_tokens.inc(len(running.request.prompt) - timings.reused)
            self._cached_tokens.inc(timings.reused)
            self._prompt_seconds.inc(timings.prompt)
            waited = time.monotonic() - running.submitted
            self._seconds.observe(waited)
            self._first_token.observe(max(0.0, waited - timings.generation))
        self._longest = max(self._longest, len(running.request.prompt) + len(completion.tokens))
        self._tokens.inc(len(completion.tokens))
        self._token_seconds.inc(timings.generation)

    def text(self, worker: Worker, parallel: int) -> bytes:
        live = len(worker.live)
        self._processing.set(min(live, parallel))
        self._deferred.set(max(0, live - parallel))
        self._steps.inc(worker.steps - _value(self._steps))
        self._busy.set(worker.busy / max(1, worker.steps))
        self._prompt_rate.set(_value(self._prompt_tokens) / (_value(self._prompt_seconds) or 1))
        self._token_rate.set(_value(self._tokens) / (_value(self._token_seconds) or 1))
        return generate_latest(self._registry) + LONGEST.format(self._longest).encode()

    def _counter(self, name: str, what: str) -> Counter:
        return Counter(f"llamacpp:{name}", what, registry=self._registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"llamacpp:{name}", what, registry=self._registry)


def _value(counter: Counter) -> float:
    return next(sample.value for metric in counter.collect() for sample in metric.samples)
