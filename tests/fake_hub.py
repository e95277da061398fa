"""A local server that speaks the part of the Hub's HTTP protocol that pushing and pulling needs,
and fails on request.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "a" * 40
CUT = "cut"
WRONG = {"X-Error-Message": "Invalid credentials in Authorization header"}


class FakeHub:
    """`repos` maps a repository's id to its files. `fail(path, status, times)` makes requests whose
    path holds `path` fail.

    A status of 0 closes the connection without an answer; CUT, in the middle of the request's body
    where it has one, else in the middle of the answer's. Who writes needs one of `tokens`, as does
    who reads a repository in `private`.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.failures: list[list] = []
        self.requests: Counter = Counter()
        self.private: set[str] = set()
        self.tokens = {"hf_x"}
        hub = self
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub})
        )
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fail(self, path, status, times=1, **headers):
        self.failures.append(
            [
                path,
                status,
                times,
                {name.replace("_", "-"): value for name, value in headers.items()},
            ]
        )

    def environment(self, home, **more):
        """Of a process that knows this Hub alone, and keeps its cache in `home`."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env |= {"HF_ENDPOINT": self.url, "HF_TOKEN": "hf_x", "HF_HOME": str(home)}
        return env | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"} | more

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Quiet."""

    def _answer(self):
        path = unquote(urlparse(self.path).path)
        self.hub.requests[f"{self.command} {path}"] += 1
        self.cut = False
        for failure in self.hub.failures:
            if (
                failure[0] in path
                and failure[2] > 0
                and not (failure[1] == CUT and self.command == "HEAD")
            ):
                failure[2] -= 1
                if failure[1] == CUT and self.command == "GET":
                    self.cut = True
                    break
                if failure[1] in (0, CUT):
                    self.rfile.read(failure[1] == CUT)  # the body has begun
                    return self._hang_up()
                self._body()
                return self._send(failure[1], {"error": "on request"}, failure[3])
        body = self._body()
        if refusal := self._refusal(path):
            return self._send(401, {"error": "Invalid username or password."}, refusal)
        for pattern, act in _ROUTES:
            if found := re.fullmatch(pattern, path):
                return act(self, body, *found.groups())
        return self._send(404, {"error": f"unknown {path}"})

    do_GET = do_POST = do_HEAD = _answer

    def _hang_up(self):
        self.close_connection = True
        self.connection.close()

    def _refusal(self, path):
        """The headers of a 401, where the token is missing or wrong."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token in self.hub.tokens:
            return None
        if token:
            return WRONG
        if self.command == "POST" and "validate-yaml" not in path:
            return {"X-Error-Message": "Invalid username or password."}
        private = any(
            path.startswith((f"/api/models/{repo}", f"/{repo}/")) for repo in self.hub.private
        )
        return {"X-Error-Code": "RepoNotFound"} if private else None

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while length := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status, content, headers=None):
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.cut:
            self.wfile.write(raw[: len(raw) // 2])
            self.wfile.flush()
            return self._hang_up()
        if self.command != "HEAD":
            self.wfile.write(raw)
        return None

    def _missing(self, code):
        self._send(404, {"error": "not found"}, {"X-Error-Code": code})

    def _who(self, _):
        token = {"displayName": "test", "role": "write"}
        self._send(
            200,
            {
                "type": "user",
                "name": "me",
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": token},
            },
        )

    def _create(self, body):
        wanted = json.loads(body)
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        status = 409 if repo in self.hub.repos else 200
        self.hub.repos.setdefault(repo, {})
        # before and since huggingface_hub 2
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.hub.private.add(repo)
        self._send(status, {"url": f"{self.hub.url}/{repo}", "name": repo, "id": "1"})

    def _preupload(self, body, _repo, _revision):
        files = [
            {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self._send(200, {"files": files})

    def _commit(self, body, repo, _revision):
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "deletedFile":
                self.hub.repos[repo].pop(line["value"]["path"])
            if line["key"] == "file":
                self.hub.repos[repo][line["value"]["path"]] = base64.b64decode(
                    line["value"]["content"]
                )
        self._send(
            200,
            {
                "commitUrl": f"{self.hub.url}/{repo}/commit/{COMMIT}",
                "commitOid": COMMIT,
                "success": True,
            },
        )

    def _info(self, _body, repo, _revision=None):
        if repo not in self.hub.repos:
            return self._missing("RepoNotFound")
        files = [
            {"rfilename": name, "size": len(c), "blobId": _sha(c)}
            for name, c in self.hub.repos[repo].items()
        ]
        return self._send(
            200, {"id": repo, "sha": COMMIT, "private": False, "tags": ["peft"], "siblings": files}
        )

    def _tree(self, _body, repo, _revision):
        if repo not in self.hub.repos:
            return self._missing("RepoNotFound")
        files = self.hub.repos[repo].items()
        return self._send(
            200,
            [{"type": "file", "path": name, "size": len(c), "oid": _sha(c)} for name, c in files],
        )

    def _resolve(self, _body, repo, _revision, name):
        content = self.hub.repos.get(repo, {}).get(name)
        if content is None:
            return self._missing("EntryNotFound" if repo in self.hub.repos else "RepoNotFound")
        headers = {"ETag": f'"{_sha(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            begin = int(found[1])
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            return self._send(206, content[begin:], headers)
        return self._send(200, content, headers)


_REPO = r"([^/]+/[^/]+)"
_ROUTES = (
    (r"/api/whoami-v2", _Handler._who),
    (r"/api/repos/create", _Handler._create),
    (r"/api/validate-yaml", lambda handler, _: handler._send(200, {"errors": [], "warnings": []})),
    (rf"/api/models/{_REPO}/preupload/(.+)", _Handler._preupload),
    (rf"/api/models/{_REPO}/commit/(.+)", _Handler._commit),
    (rf"/api/models/{_REPO}/tree/([^/]+)/?", _Handler._tree),
    (rf"/api/models/{_REPO}(?:/revision/(.+))?", _Handler._info),
    (rf"/{_REPO}/resolve/([^/]+)/(.+)", _Handler._resolve),
)


def _sha(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
