"""A stub of an OpenAI-compatible endpoint."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub(ThreadingHTTPServer):
    """Replies what `reply` makes of a request's body: a text, a choice (dict), or a status and an error's text."""

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.asked, self.keys = reply, [], []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.keys.append(self.headers["Authorization"])
        reply, status = self.server.reply(body), 200
        if isinstance(reply, tuple):
            status, reply = reply
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
        usage = None
        if isinstance(reply, dict):
            choice, usage = choice | reply, {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8}
        content = {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        content |= {"usage": usage} if usage else {}
        encoded = json.dumps(content if status == 200 else {"error": {"message": reply}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *args):
        pass


@contextmanager
def serving():
    """Gives a function that starts stubs, and stops them afterwards."""
    servers = []

    def start(reply):
        server = Stub(reply)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
