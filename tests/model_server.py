"""A model server that names the colours of the pictures it reads, and can misbehave.

    with ModelServer("keeps the first") as server:
        open_generator(server.openai)
        open_generator(server.ollama)

It counts tokens as real servers do: a picture's depend on its size alone.
"""

import base64
import io
import json
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from PIL import Image

from streammem.models.backbones.language import GenerationConfig
from tests.tiny import COLOURS

NAME = "seer:4b"
FAULTS = (
    *("slow", "429", "500", "malformed", "cut", "wrong model", "refuses pictures", "fuses"),
    *("fuses all", "drops the oldest", "keeps the first", "small context", "reasons", "uncounted"),
    *("no list", "many bytes", "dirty", "wants max_completion_tokens", "wants no temperature"),
    *("wants no logprobs",),
    *("unauthorised", "blind", "no object", "other form", "ignores pictures"),
    *("drops a token", "refuses embeddings", "another width"),
)

# What a fault is told by, behind the server's address; {} is a number.
MESSAGES = {
    "429": "HTTP 429: slow down, 2 tries; ask it less: ?concurrency=1, or --spend",
    "500": "HTTP 500: out of memory, 2 tries; see the server's own log",
    "malformed": "its reply is no JSON, 2 tries; correct the address, or see the server's own log",
    "wrong model": f"other:1b answered instead of {NAME}; name a model that it serves behind the #",
    "refuses pictures": f"{NAME} refuses pictures (image input is not supported); take a model "
    "that sees, and start it with its vision part",
    "ignores pictures": f"{NAME} reads no pictures: one changes its count by 0 tokens; take a "
    "model that sees, and start it with its vision part",
    "fuses all": "lost pictures or text: it read {} tokens, where 3 pictures and their text take "
    "{}; its answer is not given; run streammem models check, and show it less (?pictures=1)",
    "keeps the first": "lost pictures or text: it read {} tokens, where 3 pictures and their text "
    "take {}; its answer is not given; run streammem models check, and show it less (?pictures=1)",
    "drops the oldest": "lost pictures or text: it read {} tokens, where 3 pictures and their text "
    "take {}; its answer is not given; run streammem models check, and show it less (?pictures=1)",
    "small context": "the prompt does not fit into the context of 4096 tokens: it takes more ({} "
    "tokens exceed the context size of 60); start the server with a larger one, or show it less "
    "(?pictures=2)",
    "reasons": f"{NAME} answered only in its reasoning, within {{}} tokens; turn its thinking off "
    "on the server, or give a larger --max-new-tokens",
    "uncounted": "does not count the tokens of prompts, so that lost pictures cannot be noticed; "
    "give ?check=false once streammem models check has shown that it sees them all",
    "no object": "its reply is no JSON object; correct the address, or see the server's own log",
    "many bytes": "its reply is larger than 4 MiB; correct the address, or see the server's own "
    "log",
    "cut": "broke off in the middle of a reply ({said}), 2 tries; see the server's own log",
    "other form": "its reply is of another form ({said}); correct the address, or see the "
    "server's own log",
}


def message_of(fault, server) -> str:
    """The pattern of the whole message of a fault at a ``streammem`` server."""
    text = re.escape(f"{server.where}: {MESSAGES[fault]}")
    for sign, stands_for in (("", r"\d+"), ("said", ".+")):
        text = text.replace(re.escape(f"{{{sign}}}"), stands_for)
    return text


def colour_of(pixels) -> str:
    middle = np.median(np.asarray(pixels).reshape(-1, 3), axis=0)
    known = COLOURS | {"orange": (250, 140, 10), "purple": (130, 30, 170)}
    return min(known, key=lambda name: np.abs(middle - known[name]).sum())


def picture_tokens(picture: Image.Image) -> int:
    return 2 + -(-picture.width // 8) * -(-picture.height // 8)


def text_tokens(text: str) -> int:
    return 1 + len(text.split())


class ModelServer:
    """Speaks OpenAI's form and Ollama's own on a free port.

    Args:
        fault: one of ``FAULTS``, or none.
        times: requests that fail so; all of them by default.
        context: tokens, stated where servers state theirs.
        owner: what made it, as its list of models says.
        retry_after: of 429.
        language: the language model that completes prompts of embeddings.

    Attributes:
        requests: each prompt's payload, in order.
        seen: colours of each prompt that was read, in order.
        calls: tools that it calls where some are offered, each with its arguments, in order.
        has_tools: whether it calls any.
        log_probs: of each reply's tokens, as it states them where it is asked to; None for never.
    """

    def __init__(
        self,
        fault=None,
        *,
        times=None,
        context=4096,
        owner="vllm",
        retry_after=None,
        language=None,
    ):
        assert fault is None or fault in FAULTS, fault
        self.fault, self.times, self.context = fault, times, context
        self.owner, self.retry_after = owner, retry_after
        self.requests, self.seen, self.headers, self.paths = [], [], [], []
        self.reply, self.language = None, language
        self.calls, self.has_tools, self.log_probs = [], True, None
        self.done = threading.Event()
        self.release = threading.Event()
        self.release.set()
        handler = type("Handler", (_Handler,), {"model": self})
        self._http = _Quiet(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def openai(self) -> str:
        return f"openai:{self.url}/v1#{NAME}"

    @property
    def ollama(self) -> str:
        return f"ollama:{self.url}#{NAME}"

    @property
    def vllm(self) -> str:
        return f"vllm:{self.url}/v1#{NAME}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.release.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)

    def failing(self) -> bool:
        """Whether this request fails."""
        if self.times is None:
            return True
        self.times -= 1
        return self.times >= 0

    @property
    def prompts(self) -> list:
        """The payloads that asked for more than one token: the others count."""
        return [r for r in self.requests if most_tokens(r) > 1]


def most_tokens(payload) -> int:
    options = payload.get("options", {})
    return (
        options.get("num_predict") or payload.get("max_tokens") or payload["max_completion_tokens"]
    )


def parts_of(payload) -> list:
    """Return the text and pictures of a prompt, in order."""
    parts = []
    for message in payload["messages"]:
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}] if content else []
        for part in content:
            if part["type"] == "text":
                parts.append(part["text"])
            else:
                head, _, data = part["image_url"]["url"].partition(",")
                assert head == "data:image/jpeg;base64"
                parts.append(Image.open(io.BytesIO(base64.b64decode(data))))
        images = message.get("images", [])
        assert len(images) <= 1, "Ollama's pictures head their message"
        parts += [Image.open(io.BytesIO(base64.b64decode(data))) for data in images]
    return parts


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass  # a client has left


class _Handler(BaseHTTPRequestHandler):
    model: ModelServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        model = self.model
        model.paths.append(self.path)
        model.headers.append(dict(self.headers))
        row = {"id": NAME, "object": "model", "owned_by": model.owner}
        if model.owner == "vllm":
            row["max_model_len"] = model.context
        if model.fault == "unauthorised":
            self._send(401, {"error": {"message": "no such key"}})
        elif self.path == "/v1/models" and model.fault != "no list":
            self._send(200, {"object": "list", "data": [row]})
        elif self.path == "/props" and model.owner == "llamacpp":
            settings = {"n_ctx": model.context}
            vision = {"vision": model.fault != "blind"}
            self._send(200, {"default_generation_settings": settings, "modalities": vision})
        elif self.path == "/api/v0/models" and model.owner == "lmstudio":
            self._send(200, {"data": [{"id": NAME, "loaded_context_length": model.context}]})
        else:
            self._send(404, {"error": "not found"})

    def do_POST(self):
        model = self.model
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model.headers.append(dict(self.headers))
        if self.path == "/api/show":
            self._show(payload)
            return
        ollama = self.path == "/api/chat"
        completes = self.path == "/v1/completions"
        assert ollama or completes or self.path == "/v1/chat/completions", self.path
        model.requests.append(payload)
        model.release.wait(5)
        fault = model.fault if model.fault and model.failing() else None
        if payload["model"] != NAME:
            message = f"model '{payload['model']}' not found"
            self._send(404, {"error": message if ollama else {"message": message}})
        elif not self._failed(fault, payload):
            if completes:
                self._complete(fault, payload)
            else:
                self._answer(fault, payload, ollama)

    def _show(self, payload):
        if self.model.fault == "unauthorised":
            self._send(401, {"error": "no such key"})
        elif payload["model"] == NAME:
            sees = [] if self.model.fault == "blind" else ["vision"]
            info = {"seer.context_length": self.model.context}
            calls = ["tools"] if self.model.has_tools else []
            abilities = ["completion", *sees, *calls]
            self._send(200, {"capabilities": abilities, "model_info": info})
        else:
            self._send(404, {"error": f"model '{payload['model']}' not found"})

    def _failed(self, fault, payload) -> bool:
        """Fail as servers do, before anything is read."""
        refusals = {
            "refuses pictures": ("image input is not supported", "image"),
            "wants max_completion_tokens": (
                "'max_tokens' is not supported, use 'max_completion_tokens'",
                "max_tokens",
            ),
            "wants no logprobs": ("logprobs are not supported with reasoning models", "logprobs"),
            "wants no temperature": ("Unsupported value: 'temperature'", "temperature"),
        }
        if fault == "slow":
            self.model.done.wait(5)
        elif fault == "429":
            wait = self.model.retry_after
            self._send(
                429, {"error": {"message": "slow down"}}, {"Retry-After": wait} if wait else {}
            )
        elif fault == "500":
            self._send(500, {"error": {"message": "out of memory"}})
        elif fault == "malformed":
            self._raw(200, b'{"choices": [{"mess')
        elif fault == "no object":
            self._raw(200, b"[1, 2]")
        elif fault == "other form":
            self._raw(200, b'{"choices": "none"}')
        elif fault == "many bytes":
            self._raw(200, b" " * (5 << 20))
        elif fault == "cut":
            self._raw(200, b'{"choices": [', length=1000)
            self.close_connection = True
        elif payload.get("tools") and not self.model.has_tools:
            self._send(400, {"error": {"message": "tools param requires --jinja flag"}})
        elif fault in refusals and refusals[fault][1] in json.dumps(payload):
            self._send(400, {"error": {"message": refusals[fault][0]}})
        else:
            return False
        return True

    def _complete(self, fault, payload):
        """Go on after embeddings as vLLM does, which refuses them unless it is started so."""
        language, wrong = self.model.language, None
        rows = torch.load(io.BytesIO(base64.b64decode(payload["prompt_embeds"], validate=True)))
        assert rows.dtype == torch.float32 and rows.ndim == 2 and "prompt" not in payload
        assert rows.untyped_storage().nbytes() == 4 * rows.numel(), "nothing else is sent"
        assert payload["stop_token_ids"] == [language.stop_id] and not payload["stream"]
        width = language.width + 1 if fault == "another width" else rows.shape[1]
        if fault == "refuses embeddings":
            wrong = "You must set `--enable-prompt-embeds` to input `prompt_embeds`."
        elif width != rows.shape[1]:
            wrong = f"`prompt_embeds` hidden_size {rows.shape[1]} does not match {width}."
        if wrong:
            self._send(400, {"error": {"message": wrong}})
            return
        if fault == "drops a token":
            rows = rows[1:]
        config = GenerationConfig(payload["max_tokens"], temperature=payload["temperature"])
        said = "".join(language.stream([rows], config))
        usage = {"prompt_tokens": len(rows), "completion_tokens": 3}
        name = "other:1b" if fault == "wrong model" else payload["model"]
        self._send(200, {"model": name, "choices": [{"text": said}], "usage": usage})

    def _answer(self, fault, payload, ollama):
        parts = parts_of(payload)
        if fault == "fuses":
            parts = fused(parts)
        elif fault == "fuses all":
            pictures = [part for part in parts if not isinstance(part, str)][::2]
            parts = [part for part in parts if isinstance(part, str) or part in pictures]
        elif fault == "keeps the first":
            pictures = [part for part in parts if not isinstance(part, str)][:1]
            parts = [part for part in parts if isinstance(part, str) or part in pictures]
        elif fault == "drops the oldest":
            while sum(map(tokens_of, parts)) > 60:
                parts = parts[1:]
        elif fault == "ignores pictures":
            parts = [part for part in parts if isinstance(part, str)]
        took = sum(map(tokens_of, parts))
        if fault == "small context" and took > 60:
            self._send(400, {"error": {"message": f"{took} tokens exceed the context size of 60"}})
            return
        colours = [colour_of(part) for part in parts if not isinstance(part, str)]
        self.model.seen.append(colours)
        said = self.model.reply or f"I see {', '.join(colours) or 'nothing'}."
        thought = None
        if fault == "reasons":
            said, thought = "", "Hmm, the pictures ..."
        elif fault == "dirty":
            said = f"\x1b[31m{said}\x00\u202e \ud800"
        counted = 0 if fault == "uncounted" else took
        name = "other:1b" if fault == "wrong model" else payload["model"]
        calls = []
        if payload.get("tools") and self.model.calls and most_tokens(payload) > 1:
            called, arguments = self.model.calls.pop(0)
            said, written = "", arguments if ollama else json.dumps(arguments)
            calls = [{"id": "x", "function": {"name": called, "arguments": written}}]
        rows = self.model.log_probs if payload.get("logprobs") else None
        rows = [{"token": "x", "logprob": value} for value in rows or ()]
        if ollama:
            message = {"role": "assistant", "content": said, "thinking": thought}
            message |= {"tool_calls": calls} if calls else {}
            counts = {"prompt_eval_count": counted, "eval_count": 3}
            counts |= {"logprobs": rows} if rows else {}
            self._send(200, {"model": name, "message": message, "done": True, **counts})
        else:
            message = {"role": "assistant", "content": said, "reasoning_content": thought}
            message |= {"tool_calls": calls} if calls else {}
            usage = {"prompt_tokens": counted, "completion_tokens": 3}
            choice = {"message": message} | ({"logprobs": {"content": rows}} if rows else {})
            self._send(200, {"model": name, "choices": [choice], "usage": usage})

    def _send(self, status, value, headers=None):
        self._raw(status, json.dumps(value).encode(), headers)

    def _raw(self, status, body, headers=None, *, length=None):
        with suppress(OSError):  # the client may have left
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)


def tokens_of(part) -> int:
    return text_tokens(part) if isinstance(part, str) else picture_tokens(part)


def fused(parts):
    """Fuse two neighbouring pictures of equal size into the first, as a server did in 2026."""
    kept = []
    for part in parts:
        before = kept[-1] if kept else ""
        if isinstance(part, str) or isinstance(before, str) or part.size != before.size:
            kept.append(part)
    return kept
