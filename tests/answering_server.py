"""A server of this machine in the place of an OpenAI-compatible endpoint."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = {"choices": [{"message": {"content": '{"Action": "Buy"}'}, "finish_reason": "stop"}]}


class Server:
    """Answers with `replies` in turn, the last one again and again: (status, content, headers)."""

    def __init__(self, *replies):
        self.replies, self.got = list(replies), []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers["Content-Length"])
                server.got.append(
                    (self.path, dict(self.headers), json.loads(self.rfile.read(length)))
                )
                many = len(server.replies) > 1
                status, content, headers = server.replies.pop(0) if many else server.replies[0]
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()
