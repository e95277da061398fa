"""Any model behind an OpenAI-compatible endpoint, asked about each day; its answers are kept on
disk, so that none is paid for twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from flagtrl.errors import ConfigError, EndpointError, reason
from flagtrl.files import append_json_line, read_json_lines
from flagtrl.language.prompts import prompt_style
from flagtrl.language.settings import PromptSettings
from flagtrl.market.observation import Observation
from flagtrl.places import cache_root

logger = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
TRIES, FIRST_WAIT_S, LONGEST_WAIT_S = 5, 1.0, 60.0
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers.

    Attributes:
        url: up to `/v1`; `/chat/completions` is added.
        model: as the endpoint calls it.
        timeout_s: of one request.
        temperature: 0: the likeliest answer.
        max_tokens: of an answer.

    Raises:
        ConfigError: what is no http(s) address, no model's name, or no positive number.
    """

    url: str
    model: str
    timeout_s: float = 60.0
    temperature: float = 0.0
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"endpoint is {self.url!r}; give an address, as http://localhost:8000/v1"
            )
        if not self.model:
            raise ConfigError("endpoint_model is empty; name the model as the endpoint calls it")
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s is {self.timeout_s}; it must be above 0")


@dataclass
class Requests:
    """What became of the requests so far.

    Attributes:
        cached: questions that were answered from disk.
        sent: requests, those that failed among them.
        timeouts: that were not answered in time, or not at all.
        rate_limited: that were refused as too many.
        failed: that the server failed at otherwise.
    """

    cached: int = 0
    sent: int = 0
    timeouts: int = 0
    rate_limited: int = 0
    failed: int = 0


@dataclass
class Asking:
    """Observation to answer. A request that fails in passing is made again, ever later; when it
    fails for good the trading stops, and what was answered is kept: no day is traded unasked.

    Attributes:
        endpoint: is asked.
        prompts: style of the questions.
        cache: folder of the answers; None: flagtrl's own.
        sleep: between tries.
        made: what became of the requests.
    """

    endpoint: Endpoint
    prompts: PromptSettings
    cache: Path | None = None
    sleep: Callable[[float], None] = time.sleep
    made: Requests = field(default_factory=Requests)

    def __post_init__(self) -> None:
        told = {**vars(self.endpoint), "timeout_s": None}
        name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        self._file = (self.cache or cache_root() / "answers") / f"{name}.jsonl"
        self._known = self._read()
        self._style = prompt_style(self.prompts.prompt_style)

    def __call__(self, seen: Observation) -> str:
        """The answer about one day.

        Raises:
            EndpointError: it does not answer, or not with a completion.
        """
        prompt = self._style(seen, _headlines(seen, self.prompts.news_token_budget))
        question = prompt.shared + prompt.own
        key = hashlib.sha256(question.encode()).hexdigest()
        if key in self._known:
            self.made.cached += 1
        else:
            self._known[key] = self._asked(question)
            self._write(key, self._known[key])
        return self._known[key]

    def _asked(self, question: str) -> str:
        wait, told = FIRST_WAIT_S, "no answer"
        for number in range(TRIES):
            self.made.sent += 1
            try:
                reply = requests.post(
                    f"{self.endpoint.url.rstrip('/')}/chat/completions",
                    headers=_headers(),
                    json=self._content(question),
                    timeout=self.endpoint.timeout_s,
                )
            except (requests.Timeout, requests.ConnectionError) as error:
                self.made.timeouts += 1
                told = reason(error)
                asked_for = None
            except requests.RequestException as error:  # whose words may hold the key
                raise EndpointError(
                    f"{self.endpoint.url}: the request cannot be sent ({type(error).__name__}); "
                    f"check the address and {KEY_VARIABLE}"
                ) from None
            else:
                if reply.status_code not in AGAIN:
                    return self._read_reply(reply)
                limited = reply.status_code == 429
                self.made.rate_limited += limited
                self.made.failed += not limited
                told = f"HTTP {reply.status_code}: {' '.join(reply.text.split())[:200]}"
                asked_for = reply.headers.get("Retry-After")
            if number + 1 < TRIES:
                self.sleep(_seconds(asked_for, wait))
                wait = min(2 * wait, LONGEST_WAIT_S)
        raise EndpointError(
            f"{self.endpoint.url} did not answer in {TRIES} tries ({told}); the "
            f"{len(self._known)} answers so far are kept: the same command goes on"
        )

    def _content(self, question: str) -> dict[str, Any]:
        return {
            "model": self.endpoint.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": self.endpoint.temperature,
            "max_tokens": self.endpoint.max_tokens,
        }

    def _read_reply(self, reply: requests.Response) -> str:
        if not reply.ok:
            said = " ".join(reply.text.split())[:200]
            remedy = f"; set {KEY_VARIABLE}" if reply.status_code in (401, 403) else ""
            told = f"HTTP {reply.status_code}: {said}"
            raise EndpointError(f"{self.endpoint.url} refuses the request ({told}){remedy}")
        try:
            choice = reply.json()["choices"][0]
            answer, ended = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise EndpointError(
                f"{self.endpoint.url} answers with no chat completion ({reason(error)}); give the "
                "address of an OpenAI-compatible API, up to /v1"
            ) from error
        if answer is None or ended == "length":
            raise EndpointError(
                f"{self.endpoint.model} did not come to its answer in {self.endpoint.max_tokens} "
                "tokens; raise --max_tokens"
            )
        return str(answer)

    def _read(self) -> dict[str, str]:
        try:
            lines = read_json_lines(self._file)
            return {str(each["question"]): str(each["answer"]) for each in lines}
        except (OSError, ValueError, KeyError) as error:
            raise EndpointError(f"{self._file} is damaged ({reason(error)}); mend it") from error

    def _write(self, key: str, answer: str) -> None:
        try:
            append_json_line(self._file, {"question": key, "answer": answer})
        except OSError as error:
            logger.warning("%s: an answer could not be kept (%s)", self._file, error)


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


def _seconds(asked_for: str | None, wait: float) -> float:
    """How long to wait: what the server asks for, where that is a number, or else our own."""
    try:
        return min(max(float(asked_for or wait), wait), LONGEST_WAIT_S)
    except ValueError:
        return wait  # a date


def _headlines(seen: Observation, budget: int) -> list[str]:
    """The newest news first, as much as the budget holds at four characters a token: what the
    endpoint counts is not known here.
    """
    left, lines = 4 * budget, []
    for item in (item for items in reversed(seen.news) for item in items):
        text = " ".join(item.text.replace('"', "'").replace("\\", "/").split())[: max(left, 0)]
        if text.strip():
            lines.append(text.strip())
        left -= len(text)
    return lines
