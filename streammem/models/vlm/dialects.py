"""What is said to a kind of model server, and read from it: OpenAI's form, and Ollama's own.

A dialect knows paths, payloads and where the numbers stand; ``server.py`` sends, ``served.py``
decides. Both put a text before every picture: see ``prompts.py``.
"""

import base64
import io
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from streammem.errors import ConfigError, ServedModelError
from streammem.models.backbones.sampling import GenerationConfig
from streammem.models.protocols import Tool, ToolCall, ToolTurn
from streammem.models.vlm.prompts import Part
from streammem.models.vlm.server import RefusedByServer, Server, printable
from streammem.types import encodable

JPEG_QUALITY = 90
OLLAMA = "http://localhost:11434"
OLLAMA_CONTEXT = 16384  # its own 4096 drops evidence without an error
MOST_CONTEXT = 1 << 20
MAX_NAMES = 8  # of a server's models that a message lists
MAX_CHARACTERS = 20_000  # of a reply
OPTIONAL = ("temperature", "top_p", "top_k", "seed", "chat_template_kwargs", "logprobs")


class ServedReply(NamedTuple):
    """What a server replied.

    Attributes:
        text: the words that are meant for the reader; printable characters and line ends.
        reasoning: whether there was reasoning beside them.
        model: which one answered, if the server says so.
        prompt_tokens: as the server counted them; 0 where it does not count.
        reply_tokens: likewise.
        call: the first tool that it wants called, if any.
        log_probs: of the reply's tokens; empty where the server states none.
    """

    text: str
    reasoning: bool
    model: str
    prompt_tokens: int
    reply_tokens: int
    call: ToolCall | None = None
    log_probs: tuple[float, ...] = ()


class ServedModel(NamedTuple):
    """A model as its server describes it.

    Attributes:
        name: by which it is asked for.
        context: tokens of prompt and reply; None where the server does not say.
        about: what else is known, for people.
        tools: whether it can call tools, as far as the server says.
    """

    name: str
    context: int | None
    about: str
    tools: bool = True


class Dialect(Protocol):
    """How one kind of server is spoken to."""

    @property
    def path(self) -> str:
        """Where prompts are sent."""
        ...

    def find(self, server: Server, name: str) -> ServedModel:
        """Ask the server for a model.

        Raises:
            ServedModelError: it has none of this name, or one that does not see.
        """
        ...

    def payload(self, parts: Sequence[Part], decoding: GenerationConfig) -> dict[str, Any]:
        """Return the request that generates from a prompt."""
        ...

    def continued(
        self, payload: dict[str, Any], turns: Sequence[ToolTurn], tools: Sequence[Tool]
    ) -> dict[str, Any]:
        """Return a request that goes on after calls and their results, and offers tools.

        A result's text goes back as the tool's; its pictures follow as the user's, since hardly any
        server reads pictures of a tool.
        """
        ...

    def adapt(self, payload: Mapping[str, Any], message: str) -> bool:
        """Leave out from now on what a server refuses of a request; return whether it was that.

        Args:
            payload: the request that was refused.
            message: the server's.
        """
        ...

    def read(self, reply: Mapping[str, Any]) -> ServedReply:
        """Read a reply.

        Raises:
            ValueError: it is of another form.
        """
        ...


@dataclass(eq=False)
class OpenAIDialect:
    """One user message whose parts are text and JPEGs, in order.

    Attributes:
        name: of the model; ``find`` sets it.
        extra: fields that only some servers take.
        left_out: fields that the server refused.
    """

    name: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    path = "/chat/completions"

    def find(self, server: Server, name: str) -> ServedModel:
        """See ``Dialect``; a server with one model needs no name."""
        listed = server.get("/models")
        rows = listed.get("data") if isinstance(listed, dict) else None
        models = {
            str(row["id"]): row
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, dict) and "id" in row
        }
        if not name and len(models) == 1:
            (name,) = models
        if not name or (models and name not in models and server.options.check):
            raise server.error(f"has no model {printable(name) or '(none named)'}", _names(models))
        self.name, row = name, models.get(name, {})
        owner, context = str(row.get("owned_by")), _count(row.get("max_model_len"))
        root = server.url.removesuffix("/v1")
        if owner == "llamacpp":
            props = server.get("/props", root, optional=True)
            if isinstance(props, dict):
                settings = props.get("default_generation_settings")
                context = _count(settings.get("n_ctx")) if isinstance(settings, dict) else 0
                modalities = props.get("modalities")
                if isinstance(modalities, dict) and modalities.get("vision") is False:
                    raise _blind(server, name, "start it with its vision part: --mmproj FILE")
        elif not context:
            context = _lm_studio_context(server.get("/api/v0/models", root, optional=True), name)
        self.extra = {}
        if owner in ("llamacpp", "vllm"):  # others refuse what they do not know
            self.extra = {"chat_template_kwargs": {"enable_thinking": False}, "logprobs": True}
        known = server.options.context or context or None
        return ServedModel(name, known, printable(owner) if row else "")

    def payload(self, parts: Sequence[Part], decoding: GenerationConfig) -> dict[str, Any]:
        """See ``Dialect``."""
        payload = {
            "model": self.name,
            "messages": [{"role": "user", "content": _content(parts)}],
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "stream": False,
            **self.extra,
            **_sampling(decoding),
        }
        if "max_tokens" in self.left_out:
            payload["max_completion_tokens"] = decoding.max_new_tokens
        return {name: value for name, value in payload.items() if name not in self.left_out}

    def continued(
        self, payload: dict[str, Any], turns: Sequence[ToolTurn], tools: Sequence[Tool]
    ) -> dict[str, Any]:
        """See ``Dialect``."""
        messages = list(payload["messages"])
        for number, turn in enumerate(turns):
            name, given = turn.call
            written = given if isinstance(given, str) else json.dumps(given)
            call = {"id": f"call_{number}", "type": "function"}
            call_with = {**call, "function": {"name": name, "arguments": written}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call_with]})
            text, shown = _result(turn)
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
            if shown:
                messages.append({"role": "user", "content": _content(shown)})
        return payload | {"messages": messages} | _offered(tools)

    def adapt(self, payload: Mapping[str, Any], message: str) -> bool:
        """See ``Dialect``: some models want max_completion_tokens, or their own temperature."""
        if "max_completion_tokens" in message and "max_tokens" in payload:
            self.left_out |= {"max_tokens"}
            return True
        refused = {option for option in OPTIONAL if option in message and option in payload}
        self.left_out |= refused
        return bool(refused)

    def read(self, reply: Mapping[str, Any]) -> ServedReply:
        """See ``Dialect``."""
        try:
            message = reply["choices"][0]["message"]
            content = message.get("content")
            if isinstance(content, list):
                content = "".join(str(part.get("text", "")) for part in content)
            thought = message.get("reasoning_content") or message.get("reasoning")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError("no choices[0].message") from error
        usage = reply.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return _reply(
            content,
            thought,
            reply.get("model"),
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
            message.get("tool_calls"),
        )._replace(log_probs=_log_probs(reply["choices"][0].get("logprobs")))


@dataclass(eq=False)
class OllamaDialect:
    """Ollama's own /api/chat: a message for each part, since its pictures head their message.

    Attributes:
        name: of the model; ``find`` sets it.
        context: tokens that are asked for; likewise.
        keep_alive: how long the model stays loaded.
        thinks: whether it may be told not to think.
    """

    name: str = ""
    context: int = OLLAMA_CONTEXT
    keep_alive: str = "30m"
    thinks: bool = True
    path = "/api/chat"

    def find(self, server: Server, name: str) -> ServedModel:
        """See ``Dialect``."""
        try:
            shown = server.post("/api/show", {"model": name})
        except RefusedByServer as refused:
            if refused.status in (401, 403):
                raise server.key_refused(refused) from None
            raise server.error(
                f"has no model {printable(name)} ({refused.message})",
                f"run: ollama pull {printable(name)}",
            ) from None
        capabilities = shown.get("capabilities")
        if isinstance(capabilities, list) and "vision" not in capabilities:
            raise _blind(server, name, "such as qwen3-vl or gemma3")
        info = shown.get("model_info")
        sizes = [
            _count(value)
            for key, value in (info.items() if isinstance(info, dict) else ())
            if str(key).endswith(".context_length")
        ]
        self.name, self.keep_alive = name, server.options.keep_alive
        self.context = min(
            server.options.context or OLLAMA_CONTEXT, max(sizes, default=0) or 1 << 20
        )
        details = shown.get("details")
        size = details.get("parameter_size") if isinstance(details, dict) else None
        tools = not isinstance(capabilities, list) or "tools" in capabilities
        return ServedModel(name, self.context, printable(size or ""), tools)

    def payload(self, parts: Sequence[Part], decoding: GenerationConfig) -> dict[str, Any]:
        """See ``Dialect``."""
        options = {
            "num_ctx": self.context,
            "num_predict": decoding.max_new_tokens,
            "temperature": decoding.temperature,
        }
        return ({"think": False} if self.thinks else {}) | {
            "model": self.name,
            "messages": _messages(parts),
            "stream": False,
            "truncate": False,  # else the oldest messages, the evidence, go without an error
            "shift": False,
            "keep_alive": self.keep_alive,
            "logprobs": True,  # a server that does not know it lets it be
            "options": options | _sampling(decoding),
        }

    def continued(
        self, payload: dict[str, Any], turns: Sequence[ToolTurn], tools: Sequence[Tool]
    ) -> dict[str, Any]:
        """See ``Dialect``."""
        messages = list(payload["messages"])
        for turn in turns:
            name, given = turn.call
            arguments = {"text": given} if isinstance(given, str) else dict(given)
            call = {"function": {"name": name, "arguments": arguments}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            text, shown = _result(turn)
            messages.append({"role": "tool", "tool_name": name, "content": text})
            messages += _messages(shown)
        return payload | {"messages": messages} | _offered(tools)

    def adapt(self, payload: Mapping[str, Any], message: str) -> bool:
        """See ``Dialect``: a model that cannot think may refuse to be told not to."""
        refused = "think" in message and "think" in payload
        self.thinks = self.thinks and not refused
        return refused

    def read(self, reply: Mapping[str, Any]) -> ServedReply:
        """See ``Dialect``."""
        message = reply.get("message")
        if not isinstance(message, dict):
            raise ValueError("no message")
        return _reply(
            message.get("content"),
            message.get("thinking"),
            reply.get("model"),
            reply.get("prompt_eval_count"),
            reply.get("eval_count"),
            message.get("tool_calls"),
        )._replace(log_probs=_log_probs({"content": reply.get("logprobs")}))


@dataclass(eq=False)
class EmbeddingsDialect:
    """vLLM's completions of a prompt that is given by its embeddings.

    Attributes:
        name: of the model; ``find`` sets it.
    """

    name: str = ""
    path = "/completions"

    def find(self, server: Server, name: str) -> ServedModel:
        """See ``Dialect``; whether it takes embeddings shows at the first prompt."""
        found = OpenAIDialect().find(server, name)
        self.name = found.name
        return found

    def payload(
        self, embeddings: Tensor, stop_ids: Collection[int], decoding: GenerationConfig
    ) -> dict[str, Any]:
        """Return the request that generates from embeddings [T, L] until one of ``stop_ids``."""
        # A view would be saved with all that it is a view of.
        whole, out = embeddings.detach().cpu().clone(), io.BytesIO()
        torch.save(whole, out)
        return {
            "model": self.name,
            "prompt_embeds": base64.b64encode(out.getvalue()).decode(),
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "stop_token_ids": sorted(stop_ids),
            "stream": False,
            **_sampling(decoding),
        }

    def read(self, reply: Mapping[str, Any]) -> ServedReply:
        """See ``Dialect``; spaces and line ends stay as the model wrote them."""
        try:
            text = reply["choices"][0]["text"]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError("no choices[0].text") from error
        written = encodable(str(text or "")[:MAX_CHARACTERS])
        usage = reply.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return ServedReply(
            "".join(sign if sign.isprintable() or sign == "\n" else " " for sign in written),
            False,
            printable(reply.get("model") or ""),
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
        )


def encoded(picture: Any) -> str:
    """Return a picture [H, W, 3] uint8 RGB as a JPEG in base64; every server reads this form."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(out.getvalue()).decode()


def _content(parts: Sequence[Part]) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            url = f"data:image/jpeg;base64,{encoded(part)}"
            content.append({"type": "image_url", "image_url": {"url": url}})
    return content


def _messages(parts: Sequence[Part]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            messages.append({"role": "user", "content": part})
        else:
            messages.append({"role": "user", "content": "", "images": [encoded(part)]})
    return messages


def _result(turn: ToolTurn) -> tuple[str, list[Part]]:
    """Split a result into its text, and its pictures with their times."""
    text, *shown = turn.result
    return str(text), shown


def _offered(tools: Sequence[Tool]) -> dict[str, Any]:
    if not tools:
        return {}
    functions = [
        {"name": tool.name, "description": tool.help, "parameters": dict(tool.parameters)}
        for tool in tools
    ]
    return {"tools": [{"type": "function", "function": each} for each in functions]}


def _call(calls: object) -> ToolCall | None:
    """Read the first call of a reply; None where there is none that has a name."""
    try:
        function = calls[0]["function"]  # type: ignore[index]
        name, arguments = str(function["name"]), function.get("arguments") or {}
    except (TypeError, KeyError, IndexError, AttributeError):
        return None
    if isinstance(arguments, str):
        text = arguments[:MAX_CHARACTERS]
        try:
            arguments = json.loads(text)
        except (ValueError, RecursionError):
            arguments = text
    return ToolCall(name, arguments if isinstance(arguments, dict) else str(arguments))


def _sampling(decoding: GenerationConfig) -> dict[str, Any]:
    """Return the options of sampling that are not at their defaults.

    Raises:
        ConfigError: beams, which no server searches for us, or a penalty, which some ignore.
    """
    if decoding.num_beams > 1:
        raise ConfigError("num-beams: a served model searches no beams; leave it out")
    if decoding.repetition_penalty != 1:
        raise ConfigError("repetition-penalty: a served model takes none; leave it out")
    options: dict[str, Any] = {}
    if decoding.temperature > 0:
        options["seed"] = decoding.seed
    if decoding.top_p < 1:
        options["top_p"] = decoding.top_p
    if decoding.top_k:
        options["top_k"] = decoding.top_k
    return options


def _reply(
    content: object,
    thought: object,
    model: object,
    prompt_tokens: object,
    reply_tokens: object,
    calls: object = None,
) -> ServedReply:
    text = str(content or "")[: 4 * MAX_CHARACTERS]
    bare = re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL)
    lines = (printable(line, MAX_CHARACTERS) for line in bare.splitlines())
    return ServedReply(
        "\n".join(line for line in lines if line)[:MAX_CHARACTERS],
        bool(thought) or bare != text,
        printable(model or ""),
        _count(prompt_tokens),
        _count(reply_tokens),
        _call(calls),
    )


def _log_probs(stated: object) -> tuple[float, ...]:
    """Read the log-probabilities of a reply's tokens; none where one of them cannot be meant."""
    rows = stated.get("content") if isinstance(stated, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return ()
    values = [row.get("logprob") for row in rows]
    if not all(type(value) in (int, float) and -math.inf < value <= 1e-3 for value in values):
        return ()
    return tuple(min(0.0, float(value)) for value in values)


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 1 << 40 else 0


def _lm_studio_context(listed: object, name: str) -> int:
    """Read the context of a model that LM Studio has loaded; 0 where the server is another."""
    rows = listed.get("data") if isinstance(listed, dict) else None
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("id") == name:
            return _count(row.get("loaded_context_length")) or _count(row.get("max_context_length"))
    return 0


def _names(models: Mapping[str, Any]) -> str:
    if not models:
        return "name one behind a #"
    shown = [printable(name) for name in sorted(models)]
    more = ", ..." if len(shown) > MAX_NAMES else ""
    return f"it has {', '.join(shown[:MAX_NAMES])}{more}"


def _blind(server: Server, name: str, advice: str) -> ServedModelError:
    return server.error(f"{printable(name)} sees no pictures", f"take a model that does, {advice}")
