"""A small server that speaks the routes of vLLM with a network of its own: plain transformers and peft.

Of this library it has nothing but the loading of a processor where torchvision is missing.

It fills the chat template itself, expands the pictures by the model's processor, decodes with full passes, and loads adapters
from folders. ``spoil`` changes the reply to a chat request, or what the server does instead of replying.
"""

import base64
import io
import json
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from safe_rlhf_v.models.hf_families import load_processor

# LLaVA-1.5's conversation, as `vllm serve --chat-template` gets it for a model that has none.
LLAVA_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] | upper }}: {% endif %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ ' ' }}{% endfor %}ASSISTANT:"
)
Spoil = Callable[["Handler", dict[str, Any], dict[str, Any]], dict[str, Any] | None]


class Network:
    """What vLLM is: a base, and adapters that are loaded by name."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.processor = load_processor(str(base), AutoConfig.from_pretrained(base), None, None)
        self.template = self.processor.chat_template or LLAVA_TEMPLATE
        self.adapters: dict[str, Any] = {}

    def load(self, name: str, path: str) -> None:
        """Read the folder, once; later changes to it are not seen."""
        model = AutoModelForImageTextToText.from_pretrained(self.base, dtype=torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's calls of transformers
            self.adapters[name] = PeftModel.from_pretrained(model, path).eval()

    def prompt(self, messages: list[dict[str, Any]], special: bool) -> tuple[dict[str, Any], list[int]]:
        pictures: list[Image.Image] = []
        parts = "image" in self.template
        mark = self.processor.image_token
        written = []
        for message in messages:
            content = message["content"]
            content = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in content:
                if part["type"] == "image_url":
                    data = part["image_url"]["url"].removeprefix("data:image/png;base64,")
                    pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
            if parts:
                content = [{"type": "image"} if part["type"] == "image_url" else part for part in content]
            else:
                content = "\n".join(mark if part["type"] == "image_url" else part["text"] for part in content)
            written.append({"role": message["role"], "content": content})
        text = self.processor.tokenizer.apply_chat_template(
            written, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        inputs = dict(
            self.processor(
                text=[text], images=[pictures] if pictures else None, add_special_tokens=special, return_tensors="pt"
            )
        )
        return inputs, inputs["input_ids"][0].tolist()

    @torch.no_grad()
    def respond(self, body: dict[str, Any]) -> dict[str, Any]:
        """The reply to a chat request."""
        inputs, ids = self.prompt(body["messages"], body["add_special_tokens"])
        model = self.adapters[body["model"]]
        choices = []
        for number in range(body["n"]):
            draws = torch.Generator().manual_seed(body["seed"] + number)
            tokens: list[int] = []
            content = []
            reason = "length"
            while len(tokens) < body["max_tokens"]:
                run = dict(inputs, input_ids=torch.tensor([ids + tokens]))
                run["attention_mask"] = torch.ones_like(run["input_ids"])
                for name in ("token_type_ids", "mm_token_type_ids"):
                    if name in run:
                        run[name] = torch.nn.functional.pad(run[name], (0, len(tokens)))
                raw = model(**run).logits[0, -1].float()
                logits = raw.clone()
                for i, bias in body["logit_bias"].items():
                    logits[int(i)] += bias
                if body["temperature"] == 0:
                    token = int(logits.argmax())
                else:
                    token = int(torch.multinomial((logits / body["temperature"]).softmax(-1), 1, generator=draws))
                tokens.append(token)
                content.append({"token": str(token), "logprob": float(raw.log_softmax(-1)[token]), "top_logprobs": []})
                if token in body["stop_token_ids"]:
                    reason = "stop"
                    break
            message = {"role": "assistant", "content": self.processor.decode(tokens)}
            logprobs = {"content": content}
            choices.append(
                {
                    "index": number,
                    "message": message,
                    "logprobs": logprobs,
                    "finish_reason": reason,
                    "token_ids": tokens,
                }
            )
        return {"model": body["model"], "choices": choices[::-1], "prompt_token_ids": ids}


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: "EngineServer"

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests.append((self.path, body))
        server.keys.add(self.headers.get("Authorization"))
        with server.lock:
            if self.path == "/v1/load_lora_adapter":
                if body["lora_name"] in server.network.adapters:
                    self.reply(400, {"error": {"message": "it has already been loaded", "code": 400}})
                    return
                server.network.load(body["lora_name"], body["lora_path"])
                self.reply(200, f"Success: LoRA adapter '{body['lora_name']}' added successfully.")
                return
            if self.path == "/v1/unload_lora_adapter":
                del server.network.adapters[body["lora_name"]]
                self.reply(200, "Success")
                return
            if body["model"] not in server.network.adapters:
                self.reply(404, {"error": {"message": f"The model {body['model']} does not exist."}})
                return
            reply = server.network.respond(body)
        spoiled = server.spoil(self, body, reply) if server.spoil else reply
        if spoiled is not None:
            self.reply(200, spoiled)

    def reply(self, status: int, content: Any) -> None:
        raw = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


class EngineServer(ThreadingHTTPServer):
    """The server, and what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, base: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.network = Network(base)
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.keys: set[str | None] = set()
        self.spoil: Spoil | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def asked(self, route: str) -> list[dict[str, Any]]:
        """Bodies of the requests to one route."""
        return [body for path, body in self.requests if path == f"/v1/{route}"]

    def handle_error(self, *args: object) -> None:
        """Clients go away; anything else is a fault of this file."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*args)  # type: ignore[arg-type]


@contextmanager
def engine_server(base: Path) -> Iterator[EngineServer]:
    server = EngineServer(base)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
