"""A server that answers as told: the page's files under a strict policy, and the endpoints that the page speaks to.

`python mock.py [PORT]` serves it by itself, with an answer that shows everything, to look at the page by hand.
"""

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WEB = Path(__file__).resolve().parents[2] / "crates" / "cachalot-server" / "web"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
STATUS = {
    "model": "mock-1", "context": 8192, "running": 1, "waiting": 2, "tokens_per_second": 14.25, "prefill_tokens_per_second": 182.0,
    "expert_hit_rate": 0.873, "disk_bytes_per_second": 1_230_000_000, "prefix_tokens_kept": 12345,
    "prompt_tokens": 4000, "cached_prompt_tokens": 3000,
}


@dataclass
class Reply:
    """What one request gets. `gate` holds the stream after the first `before` pieces until it is set."""

    content: list[str] = field(default_factory=lambda: ["Hello", ", ", "world."])
    reasoning: list[str] = field(default_factory=list)
    status: int = 200
    error: str | None = None  # with status 200: an event in the middle of the stream
    cut: str | None = None  # "end": the stream ends too early, "break": the connection breaks
    finish: str = "stop"
    gate: threading.Event | None = None
    before: int = 0
    delay: float = 0.0
    line_end: str = "\n"


class Mock(ThreadingHTTPServer):
    """`requests` are the bodies of chat requests so far; `replies` the answers to come, the last one again and again."""

    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.requests = []
        self.replies = [Reply()]
        self.key = None
        self.models = [{"id": "mock-1", "object": "model", "context_length": 8192, "input_modalities": ["text"]}]
        self.status = dict(STATUS)
        self.disconnected = threading.Event()
        self.gone = False
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def go_away(self):
        """As if the program had ended: no new connection, no word on the old ones."""
        self.gone = True
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A browser that goes away is what some tests are about."""

    def next_reply(self):
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path == "/":
            self.send_file("index.html")
        elif self.path.startswith("/assets/") and "/" not in self.path[8:] and (WEB / self.path[8:]).is_file():
            self.send_file(self.path[8:])
        elif self.path == "/v1/models":
            self.guarded(lambda: self.send_json({"object": "list", "data": self.server.models}))
        elif self.path == "/status":
            self.guarded(self.send_status)
        else:
            self.send_json({"error": {"message": f"no such path: {self.path}"}}, 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/chat/completions":
            self.guarded(lambda: self.answer(body))
        else:
            self.send_json({"error": {"message": f"no such path: {self.path}"}}, 404)

    def guarded(self, action):
        if self.server.gone:
            self.close_connection = True
        elif self.server.key and self.headers.get("authorization") != f"Bearer {self.server.key}":
            self.send_json({"error": {"message": "The key is missing or wrong.", "type": "authentication_error"}}, 401)
        else:
            action()

    def send_status(self):
        if self.server.status is None:
            self.send_json({"error": {"message": "no such path: /status"}}, 404)
        else:
            self.send_json(self.server.status)

    def send_file(self, name):
        data = (WEB / name).read_bytes()
        self.head(200, TYPES[Path(name).suffix], len(data))
        self.wfile.write(data)

    def send_json(self, value, status=200):
        data = json.dumps(value).encode()
        self.head(status, "application/json", len(data))
        self.wfile.write(data)

    def head(self, status, kind, length=None):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-security-policy", POLICY)
        self.send_header("x-content-type-options", "nosniff")
        self.send_header("cache-control", "no-store")
        if length is None:
            self.send_header("transfer-encoding", "chunked")
        else:
            self.send_header("content-length", str(length))
        self.end_headers()

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def answer(self, body):
        self.server.requests.append(body)
        reply = self.server.next_reply()
        if reply.status != 200:
            return self.send_json({"error": {"message": reply.error, "type": "invalid_request_error"}}, reply.status)
        self.head(200, "text/event-stream")
        try:
            self.stream(reply, body)
        except OSError:
            self.server.disconnected.set()
            self.close_connection = True

    def stream(self, reply, body):
        def event(delta, finish=None, **more):
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            value = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": body["model"], "choices": [choice], **more}
            self.event(json.dumps(value), reply.line_end)

        pieces = [("reasoning", text) for text in reply.reasoning] + [("content", text) for text in reply.content]
        event({"role": "assistant", "content": None, "reasoning_content": ""} if reply.reasoning else {"role": "assistant", "content": ""})
        for number, (kind, text) in enumerate(pieces):
            if number == reply.before and reply.gate is not None:
                self.wait(reply.gate)
            event({"content": None, "reasoning_content": text} if kind == "reasoning" else {"content": text, "reasoning_content": None})
            time.sleep(reply.delay)
        if len(pieces) <= reply.before and reply.gate is not None:
            self.wait(reply.gate)
        if reply.error:
            self.event(json.dumps({"error": {"message": reply.error, "type": "server_error"}}), reply.line_end)
            return self.chunk(b"")
        if reply.cut == "end":
            return self.chunk(b"")
        if reply.cut == "break":
            # A browser may drop what it has not read yet when a connection breaks: not what is asked here.
            time.sleep(0.3)
            self.close_connection = True
            return self.connection.close()
        tokens = len(pieces)
        usage = {"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": 20 + tokens}
        event({"content": ""}, reply.finish, usage=usage)
        self.event("[DONE]", reply.line_end)
        self.chunk(b"")

    def event(self, data, line_end):
        self.chunk(f"data: {data}{line_end}{line_end}".encode())

    def wait(self, gate):
        """Sends comments as the server does while nothing is ready; a reader that is gone is noticed by them."""
        while not gate.wait(0.05):
            self.chunk(b": keep-alive\n\n")


SHOWPIECE = Path(__file__).with_name("showpiece.md")

if __name__ == "__main__":
    server = Mock(int(sys.argv[1]) if len(sys.argv) > 1 else 8099)
    text = SHOWPIECE.read_text()
    pieces = [text[at : at + 6] for at in range(0, len(text), 6)]
    server.replies = [Reply(content=pieces, reasoning=["The user wants ", "to see **everything**. ", "So be it."] * 12, delay=0.02)]
    print(server.url, flush=True)
    threading.Event().wait()
