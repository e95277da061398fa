"""A local server that speaks the part of the Hub's HTTP protocol that pushing and pulling needs, and fails on request."""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "a" * 40


class FakeHub:
    """`repos` maps a repository's id to its files. `fail(path, status, times)` makes requests whose path holds `path` fail.

    A status of 0 closes the connection without an answer.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.failures: list[list] = []
        self.requests: Counter = Counter()
        self.private: set[str] = set()
        hub = self
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fail(self, path, status, times=1):
        self.failures.append([path, status, times])

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Quiet."""

    def _answer(self):
        body, path = self._body(), unquote(urlparse(self.path).path)
        self.hub.requests[f"{self.command} {path}"] += 1
        for failure in self.hub.failures:
            if failure[0] in path and failure[2] > 0:
                failure[2] -= 1
                if failure[1] == 0:
                    self.close_connection = True
                    return self.connection.close()
                return self._send(failure[1], {"error": "on request"})
        for pattern, act in _ROUTES:
            if found := re.fullmatch(pattern, path):
                return act(self, body, *found.groups())
        return self._send(404, {"error": f"unknown {path}"})

    do_GET = do_POST = do_HEAD = _answer

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
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _missing(self, code):
        self._send(404, {"error": "not found"}, {"X-Error-Code": code})

    def _who(self, _):
        token = {"displayName": "test", "role": "write"}
        self._send(200, {"type": "user", "name": "me", "orgs": [], "auth": {"type": "access_token", "accessToken": token}})

    def _create(self, body):
        wanted = json.loads(body)
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        status = 409 if repo in self.hub.repos else 200
        self.hub.repos.setdefault(repo, {})
        if wanted.get("private") or wanted.get("visibility") == "private":  # before and since huggingface_hub 2
            self.hub.private.add(repo)
        self._send(status, {"url": f"{self.hub.url}/{repo}", "name": repo, "id": "1"})

    def _preupload(self, body, _repo, _revision):
        files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
        self._send(200, {"files": files})

    def _commit(self, body, repo, _revision):
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.hub.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self._send(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

    def _info(self, _body, repo, _revision=None):
        if repo not in self.hub.repos:
            return self._missing("RepoNotFound")
        files = [{"rfilename": name, "size": len(content)} for name, content in self.hub.repos[repo].items()]
        return self._send(200, {"id": repo, "sha": COMMIT, "private": False, "tags": ["peft"], "siblings": files})

    def _tree(self, _body, repo, _revision):
        if repo not in self.hub.repos:
            return self._missing("RepoNotFound")
        files = self.hub.repos[repo].items()
        return self._send(200, [{"type": "file", "path": name, "size": len(c), "oid": _sha(c)} for name, c in files])

    def _resolve(self, _body, repo, _revision, name):
        content = self.hub.repos.get(repo, {}).get(name)
        if content is None:
            return self._missing("EntryNotFound" if repo in self.hub.repos else "RepoNotFound")
        headers = {"ETag": f'"{_sha(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        return self._send(200, content, {**headers, "Content-Type": "application/octet-stream"})


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
