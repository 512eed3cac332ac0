"""A generator behind a server: vLLM, llama.cpp, LM Studio, a hosted one, or Ollama.

    generator = open_ollama("qwen3-vl:4b", device="cpu", options={})
    prompt = generator.answer_prompt(items, "Where is the parcel?")
    "".join(generator.stream(prompt, generator.decoding))

Servers lose pictures without an error, so none is trusted: how many tokens a picture takes is
measured once per size, and the count that comes with each reply must hold all of them. That count
comes last, so a reply is passed on as a whole. Requests wait in threads of their own, so that
frames are perceived meanwhile.
"""

import logging
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from streammem.config import override
from streammem.errors import ConfigError, ServedModelError
from streammem.models.backbones.language import GenerationConfig, GrowingReply, Prompt, Replies
from streammem.models.protocols import EvidenceItem, Reads, Tool, ToolCall, ToolTurn
from streammem.models.vlm.dialects import (
    OLLAMA,
    Dialect,
    OllamaDialect,
    OpenAIDialect,
    ServedModel,
    ServedReply,
)
from streammem.models.vlm.prompts import Part, answer_parts, caption_parts
from streammem.models.vlm.server import (
    SEE_LOG,
    WRONG,
    RefusedByServer,
    Server,
    ServerOptions,
    Spend,
)
from streammem.perception.frames import KEYFRAME_SIDE

log = logging.getLogger(__name__)
T = TypeVar("T")

DECODING = GenerationConfig(max_new_tokens=96)
ONE_TOKEN = GenerationConfig(max_new_tokens=1)
POLL_S = 0.05
# Of the context: instructions, captions and speech of a prompt, and the reply.
RESERVED_TOKENS = 1536
# What a picture takes until it is measured. Ollama reckons so, too; pictures of 320 pixels mostly
# take a quarter of it.
USUAL_TOKENS = 768
MAX_TEXTS = 256  # prompts of text whose length is known

_CONTEXT = re.compile(r"context|too long|too large|maximum.*tokens|exceed|input length", re.I)
_TOOLS = re.compile(r"tool|function|jinja", re.I)
_PICTURES = re.compile(r"imag|pictur|vision|multi-?modal|mmproj", re.I)


class ServedGenerator:
    """Writes text through a server. Threads may share it.

    Args:
        server: where requests are sent.
        dialect: how they are written.
        name: of the model there.

    Attributes:
        decoding: of captions.
        model: as the server describes it.

    Raises:
        ServedModelError: the server is not there, or has no such model.
    """

    decoding = DECODING

    def __init__(self, server: Server, dialect: Dialect, name: str) -> None:
        self.server, self._dialect = server, dialect
        self.model: ServedModel = dialect.find(server, name)
        self.context = self.model.context
        self._probing = threading.Lock()
        self._picture_tokens: dict[tuple[int, ...], int] = {}  # by height and width
        self._text_tokens: dict[str, int] = {}  # by the prompt's text; the oldest goes
        known = f"context {self.context} tokens" if self.context else "context not known"
        log.info("%s: %s, %s", server.where, self.model.name, known)

    # What a check asks besides, see check.py.
    is_served = True

    @property
    def about(self) -> str:
        """Which model it is, and at which server."""
        known = f" ({self.model.about})" if self.model.about else ""
        return f"{self.model.name}{known} at {self.server.where}"

    @property
    def most_pictures(self) -> int:
        """Of a prompt, by its options."""
        return self.server.options.pictures

    @property
    def caption_pictures(self) -> int:
        """Of a caption, by its options."""
        return self.server.options.caption_pictures

    @property
    def reads(self) -> Reads:
        """As many pictures as are allowed and have room in the context."""
        most = self.server.options.pictures
        if self.context:
            # Evidence is of keyframes; a picture that comes with a question may be larger.
            known = [n for size, n in self._picture_tokens.items() if max(size) <= KEYFRAME_SIDE]
            each = max(known, default=USUAL_TOKENS)
            most = min(most, max(1, (self.context - RESERVED_TOKENS) // each))
        return Reads(pictures=most, tools=self.model.tools)

    @property
    def batches(self) -> bool:
        """Whether several requests may be under way."""
        return self.server.options.concurrency > 1

    def caption_prompt(self, item: EvidenceItem, instruction: str | None = None) -> Prompt:
        """Build the prompt that describes a scene."""
        most = min(self.server.options.caption_pictures, self.reads.pictures)
        return caption_parts(item, instruction, most)

    def answer_prompt(self, items: Sequence[EvidenceItem], question: str) -> Prompt:
        """Build the prompt that answers from evidence, which comes in time order."""
        return answer_parts(items, question)

    def replies(
        self, prompts: Sequence[Prompt], decoding: GenerationConfig, candidates: int = 1
    ) -> Iterator[Replies | None]:
        """Yield a reply to each prompt, in order; None while they are waited for.

        Raises:
            ServedModelError: a server failed, or its reply is none.
        """
        calls = [partial(self.ask, _parts(prompt), decoding) for prompt in prompts]
        for reply in waited_for(calls, self.server.options.concurrency):
            if reply is None:
                yield None
            else:
                line = " ".join(reply.text.split())
                yield tuple(
                    GrowingReply(line, [], list(reply.log_probs)) for _ in range(candidates)
                )

    def stream(self, prompt: Prompt, decoding: GenerationConfig) -> Iterator[str]:
        """Yield a reply as one piece; empty pieces while it is waited for.

        Raises:
            ServedModelError: see ``replies``.
        """
        for reply in waited_for([partial(self.ask, _parts(prompt), decoding)], 1):
            yield "" if reply is None else reply.text

    def converse(
        self,
        prompt: Prompt,
        turns: Sequence[ToolTurn],
        tools: Sequence[Tool],
        decoding: GenerationConfig,
    ) -> Iterator[str | ToolCall | None]:
        """Yield None while a reply is waited for, then an answer or a call.

        Raises:
            ServedModelError: see ``replies``; or the server calls no tools.
        """
        ask = partial(self.ask, _parts(prompt), decoding, turns, tools)
        for reply in waited_for([ask], 1):
            yield None if reply is None else reply.call or reply.text

    # -- one request --

    def ask(
        self,
        parts: Sequence[Part],
        decoding: GenerationConfig,
        turns: Sequence[ToolTurn] = (),
        tools: Sequence[Tool] = (),
    ) -> ServedReply:
        """Return the reply to a prompt, once it is sure that all of the prompt was read.

        Args:
            parts: the prompt.
            decoding: of the reply.
            turns: calls of tools since then, with their results.
            tools: that it may call.

        Raises:
            ServedModelError: it was not, or there is no reply.
        """
        expected, least = 0, 0
        if self.server.options.check:
            # 1. What the prompt takes, by the server's own count.
            expected, least = self.count(parts, turns, tools)
            if self.context and expected + decoding.max_new_tokens > self.context:
                raise self._too_long(f"{expected} tokens, and {decoding.max_new_tokens} to reply")
        # 2. The reply.
        reply = self.send(parts, decoding, turns, tools)
        # 3. Whether it is one: from this model, about all pictures, in words.
        if self.server.options.check:
            check_model(self.server, self.model.name, reply.model)
            shown = [*parts, *(part for turn in turns for part in turn.result)]
            self._check_count(shown, reply, expected, least)
        if reply.call and tools:
            return reply
        if not reply.text:
            what = "answered only in its reasoning" if reply.reasoning else "gave an empty answer"
            raise self.server.error(
                f"{self.model.name} {what}, within {decoding.max_new_tokens} tokens",
                "turn its thinking off on the server, or give a larger --max-new-tokens",
            )
        return reply

    def send(
        self,
        parts: Sequence[Part],
        decoding: GenerationConfig,
        turns: Sequence[ToolTurn] = (),
        tools: Sequence[Tool] = (),
    ) -> ServedReply:
        """Send a prompt and return what comes, unchecked.

        Raises:
            ServedModelError: nothing that can be read came.
        """
        while True:
            payload = self._dialect.payload(parts, decoding)
            if turns or tools:
                payload = self._dialect.continued(payload, turns, tools)
            try:
                raw = self.server.post(self._dialect.path, payload)
                break
            except RefusedByServer as refused:
                if not self._dialect.adapt(payload, refused.message):
                    raise self._refusal(refused, parts, bool(tools)) from None
        try:
            reply = self._dialect.read(raw)
        except ValueError as error:
            raise self.server.error(f"its reply is of another form ({error})", WRONG) from None
        self.server.spent(reply.prompt_tokens + reply.reply_tokens)
        return reply

    def count(
        self, parts: Sequence[Part], turns: Sequence[ToolTurn] = (), tools: Sequence[Tool] = ()
    ) -> tuple[int, int]:
        """Return how many tokens a prompt takes, and its cheapest picture, as the server counts.

        Each size of picture is measured once; text once for each prompt that differs by more than
        its digits, since times differ in every prompt.

        Raises:
            ServedModelError: the server does not count, or reads no pictures.
        """
        shown = [*parts, *(part for turn in turns for part in turn.result)]
        pictures = [part for part in shown if isinstance(part, np.ndarray)]
        texts = [part for part in parts if isinstance(part, str)]
        with self._probing:
            each = [self._picture_cost(picture) for picture in pictures]
            if turns or tools:  # of each conversation: it differs by what was looked up
                plain = [turn._replace(result=_texts(turn.result)) for turn in turns]
                return self._prompt_tokens(texts, plain, tools) + sum(each), min(each, default=0)
            text = "\0".join(re.sub(r"\d", "0", part) for part in texts)
            if text not in self._text_tokens:
                self._text_tokens[text] = self._prompt_tokens(texts)
                if len(self._text_tokens) > MAX_TEXTS:
                    del self._text_tokens[next(iter(self._text_tokens))]
            return self._text_tokens[text] + sum(each), min(each, default=0)

    def _picture_cost(self, picture: np.ndarray) -> int:
        size = picture.shape[:2]
        if size not in self._picture_tokens:
            texts = ["A picture:", "Describe it."]
            cost = self._prompt_tokens([texts[0], picture, texts[1]]) - self._prompt_tokens(texts)
            if cost <= 0:
                raise self.server.error(
                    f"{self.model.name} reads no pictures: one changes its count by {cost} tokens",
                    "take a model that sees, and start it with its vision part",
                )
            self._picture_tokens[size] = cost
            shown = f"{size[1]}x{size[0]}"
            log.info("%s: a picture of %s takes %d tokens", self.server.where, shown, cost)
        return self._picture_tokens[size]

    def _prompt_tokens(
        self, parts: Sequence[Part], turns: Sequence[ToolTurn] = (), tools: Sequence[Tool] = ()
    ) -> int:
        tokens = self.send(parts, ONE_TOKEN, turns, tools).prompt_tokens
        if not tokens:
            raise self.server.error(
                "does not count the tokens of prompts, so that lost pictures cannot be noticed",
                "give ?check=false once streammem models check has shown that it sees them all",
            )
        return tokens

    def _check_count(
        self, parts: Sequence[Part], reply: ServedReply, expected: int, least: int
    ) -> None:
        count = sum(isinstance(part, np.ndarray) for part in parts)
        if reply.prompt_tokens < expected - least / 2:
            raise self.server.error(
                f"lost pictures or text: it read {reply.prompt_tokens} tokens, where {count} "
                f"{'picture' if count == 1 else 'pictures'} and their text take {expected}; its "
                "answer is not given",
                "run streammem models check, and show it less (?pictures=1)",
            )

    def _refusal(
        self, refused: RefusedByServer, parts: Sequence[Part], with_tools: bool
    ) -> ServedModelError:
        seen = any(isinstance(part, np.ndarray) for part in parts)
        name, said = self.model.name, refused.message
        if refused.status in (401, 403):
            return self.server.key_refused(refused)
        if with_tools and _TOOLS.search(said):
            return self.server.error(
                f"{name} calls no tools there ({said})",
                "start the server with them (llama.cpp: --jinja; vLLM: --enable-auto-tool-choice "
                "and its parser), or leave --steps out",
            )
        if _CONTEXT.search(said):
            return self._too_long(f"more ({said})")
        if seen and _PICTURES.search(said):
            return self.server.error(
                f"{name} refuses pictures ({said})",
                "take a model that sees, and start it with its vision part",
            )
        if refused.status == 404:
            return self.server.error(f"has no model {name} ({said})", "name one that it serves")
        return self.server.error(f"refuses the request ({refused})", SEE_LOG)

    def _too_long(self, takes: str) -> ServedModelError:
        of = f" of {self.context} tokens" if self.context else ""
        return self.server.error(
            f"the prompt does not fit into the context{of}: it takes {takes}",
            "start the server with a larger one, or show it less (?pictures=2)",
        )


def open_openai(
    name: str, *, device: str, options: Mapping[str, Any], spend: Spend | None = None
) -> ServedGenerator:
    """Open a model behind an OpenAI-compatible server.

    Args:
        name: ``URL#NAME``; without ``#NAME`` the only model that the server has.
        device: not used: the server decides.
        options: fields of ``ServerOptions``.
        spend: the budget that its requests count against.

    Raises:
        ConfigError: no address, or no such option.
        ServedModelError: see ``ServedGenerator``.
    """
    url, model = openai_address("openai", name)
    advice = "start the server, or correct the address; it ends in /v1 mostly"
    checked = override(ServerOptions(), options, f"openai:{model}: ")
    server = Server(url, "the model server", advice, checked, spend or Spend())
    return ServedGenerator(server, OpenAIDialect(), model)


def openai_address(scheme: str, name: str) -> tuple[str, str]:
    """Split ``URL#NAME`` into the URL, with its /v1, and the model's name, which may be empty.

    Raises:
        ConfigError: no address.
    """
    url, _, model = name.partition("#")
    if "://" not in url:
        usual = f"{scheme}:http://localhost:8000/v1#NAME"
        raise ConfigError(f"{scheme}:{name}: give {scheme}:URL#NAME, as in {usual}")
    if not url.split("://", 1)[1].rstrip("/").partition("/")[2]:
        url = f"{url.rstrip('/')}/v1"
    return url, model


def open_ollama(
    name: str, *, device: str, options: Mapping[str, Any], spend: Spend | None = None
) -> ServedGenerator:
    """Open a model of Ollama.

    Args:
        name: as ``ollama list`` shows it, or ``URL#NAME`` of a server elsewhere.
        device: see ``open_openai``.
        options: likewise.
        spend: likewise.

    Raises:
        ConfigError: no name, or no such option.
        ServedModelError: see ``ServedGenerator``.
    """
    url, sharp, model = name.rpartition("#")
    if not model:
        raise ConfigError(f"ollama:{name}: give ollama:NAME, as in ollama:qwen3-vl:4b")
    checked = override(ServerOptions(), options, f"ollama:{model}: ")
    advice = "run: ollama serve"
    server = Server(url if sharp else OLLAMA, "Ollama", advice, checked, spend or Spend())
    return ServedGenerator(server, OllamaDialect(), model)


def check_model(server: Server, asked: str, answered: str) -> None:
    """Refuse another model's reply; hosted ones are answered for by dated versions.

    Raises:
        ServedModelError: another model wrote it.
    """
    one, other = _core(asked), _core(answered)
    if answered and one not in other and other not in one:
        raise server.error(
            f"{answered} answered instead of {asked}", "name a model that it serves behind the #"
        )


def _parts(prompt: Prompt) -> list[Part]:
    return [part for part in prompt if isinstance(part, str | np.ndarray)]


def _texts(parts: Sequence[Part]) -> list[Part]:
    return [part for part in parts if isinstance(part, str)]


def _core(name: str) -> str:
    """Return a model's name without its folder, tag and file ending."""
    last = name.lower().replace("\\", "/").rsplit("/", 1)[-1]
    return last.removesuffix(":latest").removesuffix(".gguf")


def waited_for(calls: Sequence[Callable[[], T]], at_a_time: int) -> Iterator[T | None]:
    """Yield what calls return, in order, and None every ``POLL_S`` seconds until they have.

    Each runs in a thread that is not waited for at the end: a server may take minutes.

    Raises:
        Exception: what a call raised, in its turn.
    """
    boxes = [queue.Queue[tuple[T | None, BaseException | None]](1) for _ in calls]
    threads = [
        threading.Thread(target=_call, args=pair, name="served model", daemon=True)
        for pair in zip(calls, boxes, strict=True)
    ]
    waiting = iter(threads)
    for _ in range(at_a_time):
        if thread := next(waiting, None):
            thread.start()
    for box in boxes:
        while True:
            try:
                result, error = box.get(timeout=POLL_S)
                break
            except queue.Empty:
                yield None
        if error is not None:
            raise error
        if thread := next(waiting, None):
            thread.start()
        yield result


def _call(call: Callable[[], T], box: "queue.Queue[tuple[T | None, BaseException | None]]") -> None:
    try:
        box.put((call(), None))
    except BaseException as error:  # noqa: BLE001, carried to the thread that waits
        box.put((None, error))
