"""A chat-completions server on the loopback that misbehaves as the last word of the question says."""

import gzip
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: object = "fine", reason: object = "stop", **message: object) -> bytes:
    """A well-formed body."""
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "model": "served", "choices": [choice], "usage": usage}
    ).encode()


def without(body: bytes, **fields: object) -> bytes:
    """The body with other fields."""
    return json.dumps({**json.loads(body), **fields}).encode()


BODIES: dict[str, bytes] = {
    "fine": completion(),
    "long": completion("so it goes o", "length"),
    "refusal": completion(None, refusal="I cannot help with that."),
    "filter": completion("half a sen", "content_filter"),
    "blank": completion(" \n\t"),
    "null": completion(None),
    "thinking": completion(None, "length", reasoning_content="hm"),
    "tool": completion(None, "tool_calls", tool_calls=[{"id": "1", "type": "function"}]),
    "parts": completion([{"type": "text", "text": "fi"}, {"type": "image_url"}, {"type": "text", "text": "ne"}]),
    "emoji": completion("ಠ_ಠ\u2028 \x00 </script>"),
    "uncounted": without(completion(), usage=None),
    "nonsense_usage": without(completion(), usage={"prompt_tokens": -1, "completion_tokens": "many"}),
    "choices": without(completion(), choices=[]),
    "no_choices": without(completion(), choices=None),
    "odd_choices": without(completion(), choices=["fine"]),
    "no_message": without(completion(), choices=[{"finish_reason": "stop"}]),
    "number": completion(7),
    "surrogate": completion("\ud800"),
    "error_200": b'{"error": {"message": "overloaded", "code": 503}}',
    "empty_body": b"",
    "garbage": b"\x00\xff\xfe<html>",
    "half": completion()[:40],
    "deep": b"[" * 200_000,
    "list": b"[1, 2]",
    "digits": b'{"choices": ' + b"9" * 5000 + b"}",
}
"""What is sent with status 200."""


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: "MisbehavingServer"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.note("redirected", {})
        self.reply(200, BODIES["fine"])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        behaviour = text.split()[-1]
        tries = self.server.note(
            behaviour, {"headers": {k.lower(): v for k, v in self.headers.items()}, "body": body, "path": self.path}
        )
        with self.server.busy():
            self.behave(behaviour, tries)

    def behave(self, behaviour: str, tries: int) -> None:
        if behaviour in BODIES:
            self.reply(200, BODIES[behaviour])
        elif behaviour in ("html", "no_type"):
            self.reply(200, BODIES["fine"], **{"Content-Type": {"html": "text/html", "no_type": ""}[behaviour]})
        elif behaviour == "page":
            self.reply(200, b"<html>busy</html>", **{"Content-Type": "text/html"})
        elif behaviour == "slow":
            self.server.released.wait(20)
        elif behaviour == "slow_once":
            self.server.released.wait(20 if tries == 1 else 0)
            self.reply(200, BODIES["fine"])
        elif behaviour == "drip":
            self.drip()
        elif behaviour == "nap":
            time.sleep(0.2)
            self.reply(200, BODIES["fine"])
        elif behaviour == "cut":
            self.close_connection = True
        elif behaviour == "cut_inside":
            self.start(200, len(BODIES["fine"]))
            self.wfile.write(BODIES["fine"][:30])
            self.close_connection = True
        elif behaviour == "huge":
            self.huge()
        elif behaviour == "bomb":
            self.reply(200, gzip.compress(bytes(1 << 24)), **{"Content-Encoding": "gzip"})
        elif behaviour == "detail":
            self.reply(400, b'{"detail": "pinned to another model"}')
        elif behaviour.startswith("pad"):
            self.reply(400, f"{'x' * int(behaviour[3:])} {self.headers['Authorization']} \x1b[31m".encode())
        elif behaviour == "redirect":
            self.reply(307, b"", Location="/elsewhere")
        elif behaviour == "echo":
            self.reply(200, completion(self.headers["Authorization"], refusal=None))
        else:
            self.status(behaviour, tries)

    def status(self, behaviour: str, tries: int) -> None:
        """``429`` for ever, ``429x2`` twice and then a reply; the error repeats the key, as real ones do."""
        code, _, times = behaviour.partition("x")
        if times and tries > int(times):
            return self.reply(200, BODIES["fine"])
        error = json.dumps({"error": {"message": f"no, {self.headers['Authorization']}"}}).encode()
        headers = {"Retry-After": "0.01"} if code == "429" else {"Retry-After-Ms": "5"}
        return self.reply(int(code), error, **headers)

    def reply(self, code: int, body: bytes, **headers: str) -> None:
        self.start(code, len(body), **headers)
        self.wfile.write(body)

    def start(self, code: int, length: int | None, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            if value:
                self.send_header(name, value)
        if length is None:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def drip(self) -> None:
        """A byte now and then: each wait is short, the reply never ends."""
        self.start(200, None)
        while not self.server.released.wait(0.02):
            try:
                self.wfile.write(b" ")
            except OSError:
                return

    def huge(self) -> None:
        """A gigabyte, as long as somebody reads."""
        self.start(200, None)
        block = b" " * (1 << 16)
        for _ in range(1 << 14):
            try:
                self.wfile.write(block)
            except OSError:
                return


class MisbehavingServer(ThreadingHTTPServer):
    """The server and what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.tries: Counter[str] = Counter()
        self.most_at_once = 0
        self.released = threading.Event()
        self._at_once = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *args: object) -> None:
        """Clients go away."""

    def note(self, behaviour: str, request: dict[str, Any]) -> int:
        with self._lock:
            self.requests.append(request)
            self.tries[behaviour] += 1
            return self.tries[behaviour]

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1


@contextmanager
def misbehaving_server() -> Iterator[MisbehavingServer]:
    server = MisbehavingServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
