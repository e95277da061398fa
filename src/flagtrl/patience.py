"""Talking to the Hub: again where it is busy, and one clear line where it is of no use."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP library that the Hub's client uses: httpx, or its successor
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from flagtrl.errors import HubError, reason

# seconds that the Hub may ask for; the other processes of a run wait for the one that pushes
LONGEST_WAIT = 60.0
ATTEMPTS, FIRST_WAIT = 4, 2.0  # seconds; doubled after every attempt

T = TypeVar("T")


def patiently(work: Callable[[], T], failed: str, remedy: str) -> T:
    """Do `work`, again where the Hub or the network is busy; one clear HubError where it cannot be
    done.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return work()
        except (HTTPError, HFValidationError, OSError) as error:
            why, wait = _judge(error)
            if wait is None:
                raise HubError(f"{failed}: {why}; {remedy}") from error
            if wait > LONGEST_WAIT:
                longer = (
                    f"asks to wait {wait:.0f} s, more than the {LONGEST_WAIT:.0f} s that are "
                    "waited here"
                )
                raise HubError(f"{failed}: {why} and {longer}; {remedy} then") from error
            if attempt == ATTEMPTS:
                raise HubError(f"{failed}: {why}, {ATTEMPTS} times; {remedy} later") from error
            time.sleep(max(wait, FIRST_WAIT * 2 ** (attempt - 1)))
    raise AssertionError("the last attempt returns or raises")


def check_repo_id(repo_id: str, failed: str, remedy: str) -> None:
    """HubError where `repo_id` is no repository's name, as the Hub's client would say later."""
    patiently(lambda: validate_repo_id(repo_id), failed, remedy)


def _judge(error: Exception) -> tuple[str, float | None]:
    """Why it failed, and how many seconds the Hub asks to wait before trying again; None where that
    is of no use.
    """
    for kind, why in _HOPELESS.items():
        if isinstance(error, kind):
            return why, None
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (408, 429) or status >= 500:
            return f"the Hub answered {status}", _seconds(error.response.headers.get("Retry-After"))
        return _REFUSED.get(status, reason(error)), None
    if isinstance(error, HTTPError | ConnectionError | TimeoutError | LocalEntryNotFoundError):
        return f"no connection to {constants.ENDPOINT} ({reason(error)})", 0.0
    return reason(error), None


def _seconds(retry_after: str | None) -> float:
    """What a Retry-After header asks for: seconds, or a date; 0 where it is missing or neither."""
    try:
        wait = float(retry_after or 0)
    except ValueError:
        try:
            wait = parsedate_to_datetime(str(retry_after)).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(wait, 0.0) if math.isfinite(wait) else 0.0


_HOPELESS = {
    LocalTokenNotFoundError: "there is no token: set HF_TOKEN, or run `hf auth login`",
    OfflineModeIsEnabled: "HF_HUB_OFFLINE is set: unset it",
    HFValidationError: "the name is not that of a repository: give owner/name",
    RepositoryNotFoundError: (
        "there is no such repository, or it is private and the token (HF_TOKEN) may not read it"
    ),
}
_REFUSED = {
    401: (
        "the Hub does not know the token (401): set HF_TOKEN to one with write access, or run `hf "
        "auth login`"
    ),
    403: "the token may not do this (403): use one with write access to the repository's owner",
}
