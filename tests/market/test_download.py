import hashlib
import json
import logging
import os
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flagtrl.errors import DataError
from flagtrl.market import download
from flagtrl.market.download import CHUNK_BYTES, fetch_investorbench

BODY = json.dumps(
    {
        "2024-01-02": {"prices": 1.0, "news": ["x" * 300_000]},
        "2024-01-03": {"prices": 2.0, "news": []},
    }
).encode()
GOOD = hashlib.sha256(BODY).hexdigest()


class Upstream:
    """What the test server answers; `cuts` are the bytes sent before it hangs up, one per request,
    then none.
    """

    def __init__(self) -> None:
        self.url = ""
        self.body = BODY
        self.status = [200]
        self.cuts: list[int] = []
        self.ranges = True
        self.stray = 0
        self.etag = '"v1"'
        self.requests: list[dict[str, str]] = []


def handler_of(upstream: Upstream) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            upstream.requests.append(
                {"path": self.path, **{key.lower(): value for key, value in self.headers.items()}}
            )
            status = upstream.status.pop(0) if len(upstream.status) > 1 else upstream.status[0]
            if status != 200:
                self.send_error(status)
                return
            start = self.first_byte()
            if start >= len(upstream.body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                start += upstream.stray
                self.send_header(
                    "Content-Range",
                    f"bytes {start}-{len(upstream.body) - 1}/{len(upstream.body)}",
                )
            if upstream.etag:
                self.send_header("ETag", upstream.etag)
            payload = upstream.body[start:]
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload[: upstream.cuts.pop(0)] if upstream.cuts else payload)

        def first_byte(self) -> int:
            asked = self.headers.get("Range")
            if (
                asked is None
                or not upstream.ranges
                or self.headers.get("If-Range", upstream.etag) != upstream.etag
            ):
                return 0
            return int(asked.removeprefix("bytes=").rstrip("-"))

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def upstream(monkeypatch, tmp_path):
    state = Upstream()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(state))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(download, "BACKOFF_S", 0.0)
    monkeypatch.setitem(download.CHECKSUMS, "msft", GOOD)
    monkeypatch.setenv("FLAGTRL_DATA_URL", state.url)
    monkeypatch.setenv("FLAGTRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with closing(server.socket):
        yield state
        server.shutdown()
        thread.join()


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_a_file_is_downloaded_once(upstream, tmp_path):
    path = fetch_investorbench("MSFT", progress=False)
    assert path == tmp_path / "cache" / "msft.json" and path.read_bytes() == BODY
    assert cached(tmp_path) == ["msft.json"]
    assert fetch_investorbench("msft", progress=False) == path
    assert [request["path"] for request in upstream.requests] == ["/msft.json"]
    assert fetch_investorbench("msft", force=True, progress=False) == path
    assert len(upstream.requests) == 2


def test_arguments_go_before_the_environment(upstream, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAGTRL_DATA_URL", "http://127.0.0.1:9/none")
    path = fetch_investorbench(
        "msft", cache_dir=tmp_path / "mine", base_url=upstream.url + "/deep/", progress=False
    )
    assert (
        path == tmp_path / "mine" / "msft.json"
        and upstream.requests[0]["path"] == "/deep/msft.json"
    )


def test_the_default_cache_is_in_the_home(upstream, tmp_path, monkeypatch):
    monkeypatch.delenv("FLAGTRL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        fetch_investorbench("msft", progress=False) == tmp_path / ".cache" / "flagtrl" / "msft.json"
    )


def test_the_progress_bar_is_shown_unless_declined(upstream, capsys):
    fetch_investorbench("msft", force=True, progress=False)
    assert capsys.readouterr().err == ""
    fetch_investorbench("msft", force=True)
    assert "msft.json: 100%" in capsys.readouterr().err


def test_an_interruption_is_resumed_within_the_call(upstream, tmp_path):
    upstream.cuts = [12 * CHUNK_BYTES, 6 * CHUNK_BYTES + 5]
    assert fetch_investorbench("msft", progress=False).read_bytes() == BODY
    assert [request.get("range") for request in upstream.requests] == [
        None,
        f"bytes={12 * CHUNK_BYTES}-",
        f"bytes={18 * CHUNK_BYTES}-",
    ]
    assert upstream.requests[1]["if-range"] == '"v1"'
    assert cached(tmp_path) == ["msft.json"]


def test_an_interruption_is_resumed_by_the_next_call(upstream, tmp_path):
    kept = 12 * CHUNK_BYTES
    upstream.cuts = [kept, 10, 0]
    message = (
        rf"/msft\.json: no complete download in 3 attempts \(.*\); {kept} bytes are kept and the "
        r"next call resumes; check"
    )
    with pytest.raises(DataError, match=message):
        fetch_investorbench("msft", progress=False)
    assert cached(tmp_path) == ["msft.json.part", "msft.json.part.etag"]
    assert fetch_investorbench("msft", progress=False).read_bytes() == BODY
    assert upstream.requests[-1]["range"] == f"bytes={kept}-" and cached(tmp_path) == ["msft.json"]


@pytest.mark.parametrize(
    "change", [{"ranges": False}, {"etag": ""}, {"etag": 'W/"weak"'}, {"stray": 5}]
)
def test_what_a_server_cannot_resume_is_fetched_whole(upstream, change):
    for name, value in change.items():
        setattr(upstream, name, value)
    upstream.cuts = [100_000]
    assert fetch_investorbench("msft", progress=False).read_bytes() == BODY
    assert "if-range" not in upstream.requests[1] or upstream.etag == '"v1"'


def test_a_new_version_is_not_spliced_to_the_old(upstream, caplog):
    upstream.cuts = [100_000, 0, 0]
    with pytest.raises(DataError, match="no complete download"):
        fetch_investorbench("tsla", progress=False)
    upstream.body, upstream.etag = BODY.replace(b"x", b"y"), '"v2"'
    assert fetch_investorbench("tsla", progress=False).read_bytes() == upstream.body


def test_a_part_longer_than_the_file_is_dropped(upstream, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "msft.json.part").write_bytes(BODY + b"more")
    assert fetch_investorbench("msft", progress=False).read_bytes() == BODY


def test_force_does_not_resume(upstream, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "msft.json.part").write_bytes(b"rubbish")
    assert fetch_investorbench("msft", force=True, progress=False).read_bytes() == BODY
    assert "range" not in upstream.requests[0]


def test_a_wrong_checksum_leaves_nothing_in_the_cache(upstream, tmp_path):
    upstream.body = b'{"other": 1}'
    got = hashlib.sha256(upstream.body).hexdigest()
    message = (
        rf"wrong checksum: expected sha256 {GOOD}, got {got}; .*removed: run again, or .*--data "
        r"FILE$"
    )
    with pytest.raises(DataError, match=message):
        fetch_investorbench("msft", progress=False)
    assert cached(tmp_path) == []


def test_a_spoilt_cached_file_is_replaced_and_said_so(upstream, caplog):
    path = fetch_investorbench("msft", progress=False)
    path.write_bytes(BODY[:-1])
    with caplog.at_level(logging.WARNING):
        assert fetch_investorbench("msft", progress=False).read_bytes() == BODY
    assert f"expected {GOOD}: it is removed and downloaded again" in caplog.text


def test_a_file_of_no_known_checksum_is_held_to_its_first_version(upstream, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        path = fetch_investorbench("tsla", progress=False)
    assert "is unpinned" in caplog.text and GOOD in caplog.text
    assert (tmp_path / "cache" / "tsla.json.sha256").read_text() == f"{GOOD}  tsla.json\n"
    caplog.clear()
    assert fetch_investorbench("tsla", progress=False) == path and caplog.text == ""
    path.write_bytes(b"{}")  # spoilt; and upstream has moved on meanwhile
    upstream.body = b'{"new": 1}'
    with pytest.raises(
        DataError,
        match=rf"wrong checksum: expected sha256 {GOOD}, .*\(force=True accepts a new version\)",
    ):
        fetch_investorbench("tsla", progress=False)
    assert cached(tmp_path) == ["tsla.json.sha256"]
    assert fetch_investorbench("tsla", force=True, progress=False).read_bytes() == upstream.body
    assert fetch_investorbench("tsla", progress=False).read_bytes() == upstream.body
    (tmp_path / "cache" / "tsla.json.sha256").unlink()
    fetch_investorbench("tsla", progress=False)
    assert cached(tmp_path) == ["tsla.json", "tsla.json.sha256"]


def test_a_spoilt_record_is_named(upstream, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tsla.json.sha256").write_text("abc")
    with pytest.raises(
        DataError, match=r"tsla\.json\.sha256 holds no sha256; delete it together with tsla\.json"
    ):
        fetch_investorbench("tsla", progress=False)


def test_a_login_page_is_not_recorded(upstream, tmp_path):
    upstream.body = b"<html>Sign in</html>"
    with pytest.raises(
        DataError, match=r"/uvv\.json: the answer is not JSON \(.*\); check the network"
    ):
        fetch_investorbench("uvv", progress=False)
    assert cached(tmp_path) == []


def test_a_refusal_is_final_and_an_outage_is_tried_again(upstream):
    upstream.status = [404]
    message = (
        r"^http://127.*/msft\.json: the server answered HTTP 404 Not Found; .*pass a local file "
        r"with --data FILE$"
    )
    with pytest.raises(DataError, match=message):
        fetch_investorbench("msft", progress=False)
    assert len(upstream.requests) == 1
    upstream.status = [503, 429, 200]
    assert fetch_investorbench("msft", progress=False).read_bytes() == BODY
    upstream.status = [503]
    with pytest.raises(
        DataError,
        match=r"no complete download in 3 attempts \(HTTP 503 Service Unavailable\); check",
    ):
        fetch_investorbench("msft", force=True, progress=False)


def test_no_network_names_the_address_and_the_remedy(upstream):
    with pytest.raises(
        DataError,
        match=(
            r"^http://127\.0\.0\.1:9/msft\.json: no complete download in 3 attempts "
            r"\(.*Connection refused\); .*--data FILE$"
        ),
    ) as caught:
        fetch_investorbench("msft", base_url="http://127.0.0.1:9", progress=False)
    assert "\n" not in str(caught.value)


def test_a_short_answer_is_noticed_where_urllib3_does_not(upstream, monkeypatch):
    monkeypatch.setattr("requests.Response.iter_content", lambda response, size: iter([BODY[:100]]))
    upstream.ranges = False
    with pytest.raises(
        DataError,
        match=(
            rf"3 attempts \(the connection closed after 100 of {len(BODY)} bytes\); 100 bytes are"
        ),
    ):
        fetch_investorbench("msft", progress=False)


def test_an_address_that_is_none_is_refused_at_once(upstream):
    with pytest.raises(
        DataError,
        match=r"nowhere/msft\.json: the download failed \(.*No scheme supplied.*\); check",
    ):
        fetch_investorbench("msft", base_url="nowhere", progress=False)


def test_an_unknown_symbol_lists_the_known(upstream):
    with pytest.raises(
        DataError,
        match=r"symbol 'AAPL' is unknown; known: btc, hon, jnj, msft, tsla, uvv; .*--data FILE",
    ):
        fetch_investorbench("AAPL")


def test_a_cache_that_cannot_be_written_is_named(upstream, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError,
        match=r"file/cache: the cache cannot be used \(Not a directory\); set FLAGTRL_CACHE",
    ):
        fetch_investorbench("msft", cache_dir=tmp_path / "file" / "cache", progress=False)


@pytest.mark.skipif(
    not os.path.exists("/dev/full"),
    reason="/dev/full is the disk that is always full; this system has none",
)
def test_a_full_disk_is_named(upstream, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "msft.json.part").symlink_to("/dev/full")
    with pytest.raises(
        DataError, match=r"cache: the disk is full; free some space, or set FLAGTRL_CACHE"
    ):
        fetch_investorbench("msft", progress=False)
    assert cached(tmp_path) == ["msft.json.part", "msft.json.part.etag"]


def test_a_file_that_does_not_end_is_refused_before_the_disk_is_full(
    upstream, tmp_path, monkeypatch
):
    monkeypatch.setattr(download, "MOST_BYTES", len(BODY) - 1)
    with pytest.raises(DataError, match="the server sends more than 0 MB, which is none of these"):
        fetch_investorbench("MSFT", cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.part"))
