"""What a running server says of texts over HTTP: log-probabilities by /v1/completions, and what steered them.

Takes token ids and fields of a request, gives the server's figures as they come. It knows no reference and judges
nothing.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib import error, parse, request

from edge_steer.core.errors import EdgeSteerError
from edge_steer.parity.baseline import SteeringRecord

KEY = "EDGE_STEER_API_KEY"  # of the server; of its own, so that no other service's key is sent to an address by chance
TIMEOUT = 300.0
MOST_BYTES = 2**28
MESSAGE_LENGTH = 300


@dataclass(frozen=True)
class ScoredText:
    """The tokens after a text's first one.

    logprobs: of each token, in nats. top: for each, the likeliest tokens in its place, by their text.
    stated: what the server says steered them; None where it does not say.
    """

    logprobs: tuple[float, ...]
    top: tuple[Mapping[str, float], ...]
    stated: tuple[SteeringRecord, ...] | None


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server. url: with or without /v1; its key is in $EDGE_STEER_API_KEY, if it needs one."""

    url: str

    def __post_init__(self) -> None:
        parts = parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise EdgeSteerError(f"{self.url!r} is no address of a server; give one such as http://localhost:8080")

    def quant(self) -> str | None:
        """The type of the server's file, such as F16; None if it does not say."""
        try:
            meta = self._json("/models", None)["data"][0]["meta"]
        except (LookupError, TypeError):
            return None
        ftype = meta.get("ftype") if isinstance(meta, dict) else None
        return ftype if isinstance(ftype, str) else None

    def score(self, tokens: Sequence[int], fields: Mapping[str, object], top: int) -> ScoredText:
        """A text under these fields of a request. Errors: EdgeSteerError where the server cannot say."""
        body = {"prompt": list(tokens), "max_tokens": 0, "echo": True, "logprobs": top, "temperature": 0, **fields}
        answer = self._json("/completions", body)
        try:
            figures = answer["choices"][0]["logprobs"]
            logprobs = tuple(float(one) for one in figures["token_logprobs"][1 : len(tokens)])
            likeliest = tuple({str(t): float(p) for t, p in one.items()}
                              for one in figures["top_logprobs"][1 : len(tokens)])  # fmt: skip
            stated = _stated(answer.get("steering"))
        except (LookupError, TypeError, ValueError, AttributeError):
            raise EdgeSteerError(
                f"{self.url} gives no log-probabilities of a prompt's tokens; it needs /v1/completions with echo"
            ) from None
        if not len(logprobs) == len(likeliest) == len(tokens) - 1:
            raise EdgeSteerError(f"{self.url} gives {len(logprobs)} log-probabilities for {len(tokens)} tokens")
        if any(math.isnan(one) for one in logprobs) or not all(likeliest):
            raise EdgeSteerError(f"{self.url} gives log-probabilities that are not numbers, or none of other tokens")
        return ScoredText(logprobs, likeliest, stated)

    def _json(self, path: str, body: Mapping[str, object] | None) -> Any:
        base = self.url.rstrip("/").removesuffix("/v1")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        try:
            asked = request.Request(f"{base}/v1{path}", data, headers)
            with _OPENER.open(asked, timeout=TIMEOUT) as response:
                return json.loads(response.read(MOST_BYTES))
        except error.HTTPError as refusal:
            hint = f"; check {KEY}" if refusal.code == 401 else ""
            raise EdgeSteerError(f"{self.url} refuses: {_message(refusal)}{hint}") from None
        except OSError as failure:
            reason = failure.reason if isinstance(failure, error.URLError) else failure
            raise EdgeSteerError(f"{self.url} does not answer: {_line(str(reason))}") from None
        except ValueError:
            raise EdgeSteerError(f"{self.url} answers with no JSON; is it an OpenAI-compatible server?") from None


class _NoRedirect(request.HTTPRedirectHandler):
    """A key goes to the address it was meant for, and nowhere else."""

    def redirect_request(self, *_: object) -> None:
        return None


_OPENER = request.build_opener(_NoRedirect)


def _stated(entries: object) -> tuple[SteeringRecord, ...] | None:
    if not isinstance(entries, list):
        return None
    return tuple(
        SteeringRecord(one["sha256"], float(one["scale"]), tuple(map(int, one["layers"])), one["phase"])
        for one in entries
    )


def _message(refusal: error.HTTPError) -> str:
    """The server's own words in one line, else its status."""
    try:
        return _line(json.loads(refusal.read(MOST_BYTES))["error"]["message"])
    except (ValueError, LookupError, TypeError, AttributeError, OSError):
        return f"status {refusal.code}"


def _line(text: str) -> str:
    return " ".join(text.split())[:MESSAGE_LENGTH]
