"""InvestorBench's files, downloaded once into a cache and checked by SHA-256 before every use."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from tqdm import tqdm

from flagtrl.errors import DataError
from flagtrl.files import sha256_of
from flagtrl.places import cache_root

INVESTORBENCH = "InvestorBench"  # as a run names the source of its data where they were downloaded
BASE_URL = "https://raw.githubusercontent.com/felis33/INVESTOR-BENCH/main/data"
# SHA-256; None: not known to us, recorded at the first download
CHECKSUMS: dict[str, str | None] = {
    "btc": "938962b2a1ed76387c82d260d51c9afff3de303284e923cd79695629775c7e38",
    "hon": "ff90bea4e8ff35cb2752e24ad74d321eb94f06e72953acaaa48e02595e12850b",
    "jnj": "ba557598af05ed9947a710cb328462e279d59be19b18907339805d503c45ca8c",
    "msft": "f3af207052f2580ce5d03079a1ba17c4314a715ad55b365dc45e954dd15c5509",
    "tsla": None,
    "uvv": None,
}
ATTEMPTS = 3
BACKOFF_S = 0.5  # before the second attempt; doubled before each later one
CHUNK_BYTES = 1 << 13  # an interruption loses less than one chunk
MOST_BYTES = 1 << 28  # InvestorBench's largest file has 20 MB
TIMEOUT_S = (10.0, 60.0)  # to connect, and between two reads

_REMEDY = "check the network and the address, or pass a local file with --data FILE"
_log = logging.getLogger(__name__)


def checked_symbol(symbol: str) -> str:
    """The name of InvestorBench's file of an asset; DataError where it has none."""
    name = symbol.lower()
    if name not in CHECKSUMS:
        raise DataError(
            f"symbol {symbol!r} is unknown; known: {', '.join(CHECKSUMS)}; for any other, pass a "
            "file: --data FILE"
        )
    return name


def fetch_investorbench(
    symbol: str,
    cache_dir: str | Path | None = None,
    base_url: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """The path of `symbol`'s InvestorBench file in the cache, downloaded where it is not there yet.

    The file gets its name only after its checksum is right. What an interrupted download left
    (`NAME.json.part`) is resumed by the next call. Where no checksum is known to us, the first
    download's is recorded in `NAME.json.sha256`, with a logged warning, and later uses are held to
    it.

    Args:
        symbol: one of CHECKSUMS, in any case.
        cache_dir: default: $FLAGTRL_CACHE, or else ~/.cache/flagtrl.
        base_url: where `{symbol}.json` lies; default: $FLAGTRL_DATA_URL, or else BASE_URL.
        force: download anew, whatever the cache holds; a recorded checksum is then replaced, a
            known one is not.
        progress: show a progress bar on stderr.

    Raises:
        DataError: an unknown symbol, no network, an HTTP error, a wrong checksum, or a cache that
            cannot be written.
    """
    name = checked_symbol(symbol)
    cache = Path(cache_dir) if cache_dir else cache_root()
    url = f"{(base_url or os.environ.get('FLAGTRL_DATA_URL') or BASE_URL).rstrip('/')}/{name}.json"
    target = cache / f"{name}.json"
    with _cache_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        expected = CHECKSUMS[name] or (None if force else _recorded(target))
        if not force and target.exists() and _is_sound(target, expected):
            return target
        if force:
            _discard(_part(target))
        _download(url, _part(target), progress)
        _accept(_part(target), target, url, expected)
    return target


def _is_sound(target: Path, expected: str | None) -> bool:
    """Whether the cached file is the one expected. A spoilt one is removed, with a warning, to be
    downloaded again.
    """
    got = sha256_of(target)
    if expected is None:
        _record(target, got)
    elif got != expected:
        _log.warning(
            "%s has sha256 %s, expected %s: it is removed and downloaded again",
            target,
            got,
            expected,
        )
        target.unlink()
        return False
    return True


def _accept(part: Path, target: Path, url: str, expected: str | None) -> None:
    """Give a complete download its name, if its checksum is right or, with none known, if it is
    JSON at all.
    """
    got = sha256_of(part)
    if expected is not None and got != expected:
        _discard(part)
        raise DataError(
            f"{url}: wrong checksum: expected sha256 {expected}, got {got}; the download was "
            "removed: run again, or get the file yourself and pass it with --data FILE"
            + (" (force=True accepts a new version)" if CHECKSUMS[target.stem] is None else "")
        )
    if expected is None:
        _check_json(part, url)
        _record(target, got)
    os.replace(part, target)
    _discard(part)


def _check_json(part: Path, url: str) -> None:
    try:
        json.loads(part.read_bytes())
    except ValueError as error:  # a login page, for one, must not become the recorded version
        _discard(part)
        raise DataError(f"{url}: the answer is not JSON ({error}); {_REMEDY}") from error


def _download(url: str, part: Path, progress: bool) -> None:
    """Fill `part` from `url`, resuming what it holds; ATTEMPTS tries, then a DataError that leaves
    the part to be resumed.
    """
    failures: list[requests.RequestException] = []
    while len(failures) < ATTEMPTS:
        if failures:
            time.sleep(BACKOFF_S * 2 ** (len(failures) - 1))
        try:
            _stream(url, part, progress)
            return
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            failures.append(error)
        except requests.RequestException as error:
            raise DataError(f"{url}: the download failed ({error}); {_REMEDY}") from error
    kept = (
        f"; {part.stat().st_size} bytes are kept and the next call resumes"
        if part.exists() and part.stat().st_size
        else ""
    )
    reason = _root_cause(failures[-1])
    raise DataError(
        f"{url}: no complete download in {ATTEMPTS} attempts ({reason}){kept}; {_REMEDY}"
    ) from failures[-1]


def _stream(url: str, part: Path, progress: bool) -> None:
    """One request: append to `part` where the server continues it, else write it anew.

    Raises:
        DataError: the server refuses for good.
        requests.RequestException: anything worth another attempt, among it a connection that closes
            early.
    """
    have = part.stat().st_size if part.exists() else 0
    with requests.get(
        url, headers=_headers(part, have), stream=True, timeout=TIMEOUT_S
    ) as response:
        _check_status(response, url, part, have)
        have = have if response.status_code == 206 else 0
        _keep_etag(part, response.headers.get("ETag", ""))
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None and length.isdigit() else None
        _check_bound(url, part, total or have)
        bar = tqdm(
            desc=part.stem,
            total=total,
            initial=have,
            unit="B",
            unit_scale=True,
            disable=not progress,
        )
        with bar, part.open("ab" if have else "wb") as file:
            for chunk in response.iter_content(CHUNK_BYTES):
                have += file.write(chunk)
                _check_bound(url, part, have)
                bar.update(len(chunk))
    if total is not None and have != total:
        raise requests.ConnectionError(f"the connection closed after {have} of {total} bytes")


def _check_bound(url: str, part: Path, size: int) -> None:
    """Refuse more than any of these files holds, before the disk is full; DataError."""
    if size > MOST_BYTES:
        _discard(part)
        raise DataError(
            f"{url}: the server sends more than {MOST_BYTES >> 20} MB, which is none of these "
            f"files; {_REMEDY}"
        )


def _headers(part: Path, have: int) -> dict[str, str]:
    # identity: with a compressed answer, Content-Length and ranges would not count the bytes of the
    # file.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _etag(part).exists():
            # another version by now: the server sends all of it
            headers["If-Range"] = _etag(part).read_text(encoding="utf-8")
    return headers


def _check_status(response: requests.Response, url: str, part: Path, have: int) -> None:
    status = response.status_code
    strayed = status == 206 and not response.headers.get("Content-Range", "").startswith(
        f"bytes {have}-"
    )
    if status == 416 or strayed:  # the part cannot be continued: the next attempt starts anew
        _discard(part)
        raise requests.ConnectionError(
            f"HTTP {status}: the server does not continue after byte {have}"
        )
    if status >= 500 or status == 429:
        raise requests.ConnectionError(f"HTTP {status} {response.reason}")
    if status not in (200, 206):
        raise DataError(f"{url}: the server answered HTTP {status} {response.reason}; {_REMEDY}")


def _keep_etag(part: Path, etag: str) -> None:
    """Remember a strong validator beside the part; If-Range takes no weak one."""
    if etag.startswith('"'):
        _etag(part).write_text(etag, encoding="utf-8")
    else:
        _etag(part).unlink(missing_ok=True)


def _recorded(target: Path) -> str | None:
    """The checksum recorded beside the file, or None."""
    path = _sidecar(target)
    if not path.exists():
        return None
    match = re.match(r"[0-9a-f]{64}\b", path.read_text(errors="replace", encoding="utf-8"))
    if match is None:
        raise DataError(
            f"{path} holds no sha256; delete it together with {target.name}, and run again"
        )
    return match[0]


def _record(target: Path, checksum: str) -> None:
    """Write the checksum as `sha256sum` would."""
    _sidecar(target).write_text(f"{checksum}  {target.name}\n", encoding="utf-8")
    _log.warning(
        "%s is unpinned: no checksum of it is known; its sha256 %s is recorded in %s and later "
        "uses are held to it",
        target,
        checksum,
        _sidecar(target).name,
    )


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _etag(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _sidecar(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag(part).unlink(missing_ok=True)


def _root_cause(error: BaseException) -> str:
    """What went wrong at the bottom ('[Errno 111] Connection refused'), without the pools and
    retries wrapped around it.
    """
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__


@contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    """OSErrors of the cache as DataErrors. Those of the network are handled before they get
    here.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DataError(
                f"{cache}: the disk is full; free some space, or set FLAGTRL_CACHE to another "
                "directory"
            ) from error
        raise DataError(
            f"{cache}: the cache cannot be used ({error.strerror or error}); set FLAGTRL_CACHE to "
            "a directory you can write"
        ) from error
