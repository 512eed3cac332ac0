"""Our own bridge feeds a language model behind vLLM: prompts go there as embeddings.

    generator = open_vllm("http://localhost:8000/v1", device="cpu", options={}, base=load)
    prompt = generator.caption_prompt(EvidenceItem(0.0, 5.0, tokens))
    "".join(generator.stream(prompt, generator.decoding))

Here a prompt is built as for the model's own language model, from its embeddings alone; the layers
run on the server, which was given them by ``streammem models export``. It must count as many tokens
as were sent.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from streammem.config import override
from streammem.errors import ConfigError, ServedModelError
from streammem.models import checkpoint
from streammem.models.backbones.language import GenerationConfig, GrowingReply, Prompt, Replies
from streammem.models.protocols import EvidenceItem, Reads, StreamModel
from streammem.models.tiny.model import VideoModel
from streammem.models.vlm.check import CheckLine
from streammem.models.vlm.dialects import EmbeddingsDialect, ServedReply
from streammem.models.vlm.served import check_model, openai_address, waited_for
from streammem.models.vlm.server import WRONG, RefusedByServer, Server, ServerOptions, Spend

START = "start it so: vllm serve FOLDER --enable-prompt-embeds"
EXPORT = "serve the folder that streammem models export has written for this model"
EQUAL_WORDS = 3  # at the beginning of a caption; further on rounding may choose another word

_WIDTH = re.compile(r"hidden.?size|width|shape|dimension", re.I)
_CONTEXT = re.compile(r"context|too long|maximum.*(length|tokens)|max_model_len", re.I)


class EmbeddedGenerator:
    """Writes text with a model's own language model, behind a server. Threads may share it.

    Args:
        server: where requests are sent.
        name: of the language model there; empty for the only one.
        open_model: opens the model whose tokens are read, once the server is known to be there; of
            its language model only the embeddings are used.

    Raises:
        ServedModelError: the server is not there, or has no such model.
    """

    def __init__(self, server: Server, name: str, open_model: Callable[[], VideoModel]) -> None:
        self.server, self._dialect = server, EmbeddingsDialect()
        self.served = self._dialect.find(server, name)
        self._model = open_model()
        self.decoding = self._model.decoding

    reads = Reads(tokens=True)

    @property
    def batches(self) -> bool:
        """Whether several requests may be under way."""
        return self.server.options.concurrency > 1

    def caption_prompt(self, item: EvidenceItem, instruction: str | None = None) -> Prompt:
        """Build the prompt that describes a segment from its tokens [M, D]."""
        return self._model.caption_prompt(item, instruction)

    def answer_prompt(self, items: Sequence[EvidenceItem], question: str) -> Prompt:
        """Build the prompt that answers from evidence, which comes in time order."""
        return self._model.answer_prompt(items, question)

    def replies(
        self, prompts: Sequence[Prompt], decoding: GenerationConfig, candidates: int = 1
    ) -> Iterator[Replies | None]:
        """Yield a reply to each prompt, in order; None while they are waited for.

        Raises:
            ServedModelError: a server failed, or has lost tokens.
        """
        calls = [partial(self.ask, prompt, decoding) for prompt in prompts]
        for reply in waited_for(calls, self.server.options.concurrency):
            if reply is None:
                yield None
            else:
                yield (GrowingReply(reply.text.strip(), [], []),) * candidates

    def stream(self, prompt: Prompt, decoding: GenerationConfig) -> Iterator[str]:
        """Yield a reply as one piece, since its count comes last; empty pieces meanwhile.

        Raises:
            ServedModelError: see ``replies``.
        """
        for reply in waited_for([partial(self.ask, prompt, decoding)], 1):
            yield "" if reply is None else reply.text

    @torch.inference_mode()
    def ask(self, prompt: Prompt, decoding: GenerationConfig) -> ServedReply:
        """Return the reply to a prompt, once it is sure that all of the prompt was read.

        Raises:
            ConfigError: beams.
            ServedModelError: it was not, or there is no reply.
        """
        # 1. The prompt as embeddings [T, L], and whether there is room for it.
        language = self._model.language
        embeddings = language.embed(prompt)
        length, context = len(embeddings), self.served.context
        if context and length + decoding.max_new_tokens > context:
            takes = f"{length} tokens, and {decoding.max_new_tokens} to reply"
            raise self._too_long(f" of {context} tokens: it takes {takes}")
        # 2. The reply.
        payload = self._dialect.payload(embeddings, language.stop_ids, decoding)
        try:
            raw = self.server.post(self._dialect.path, payload)
        except RefusedByServer as refused:
            raise self._refusal(refused, embeddings.shape[1]) from None
        try:
            reply = self._dialect.read(raw)
        except ValueError as error:
            raise self.server.error(f"its reply is of another form ({error})", WRONG) from None
        self.server.spent(reply.prompt_tokens + reply.reply_tokens)
        # 3. Whether this model wrote it, and read all of the prompt.
        if self.server.options.check:
            check_model(self.server, self.served.name, reply.model)
            if reply.prompt_tokens != length:
                raise self.server.error(
                    f"did not read the prompt as it was sent: it counts {reply.prompt_tokens} "
                    f"tokens of {length}; its answer is not given",
                    "update vLLM, or see its log",
                )
        return reply

    def findings(self, own: VideoModel) -> Iterator[CheckLine]:
        """Yield how it compares with the model's own language model, which runs here.

        Args:
            own: the model with all of its language model.
        """
        yield CheckLine("model", f"{self.served.name} at {self.server.where}")
        context = self.served.context
        tokens = f"{context} tokens" if context else "the server does not say"
        yield CheckLine("context", tokens, is_good=bool(context))
        noise = torch.randn(own.token_shape, generator=torch.Generator().manual_seed(0))
        prompt = self.caption_prompt(EvidenceItem(0.0, 1.0, noise))
        greedy = GenerationConfig(max_new_tokens=16)
        theirs = self.ask(prompt, greedy).text.split()
        yield CheckLine("prompt", "all of its tokens are read")
        ours = own.language.generate([prompt], greedy)[0].split()
        is_equal = theirs[:EQUAL_WORDS] == ours[:EQUAL_WORDS]
        said = f"{' '.join(theirs)!r} there, {' '.join(ours)!r} here"
        yield CheckLine("words", said if is_equal else f"{said}; {EXPORT}", is_good=is_equal)

    def _refusal(self, refused: RefusedByServer, width: int) -> ServedModelError:
        said = refused.message
        if refused.status in (401, 403):
            return self.server.key_refused(refused)
        if "enable-prompt-embeds" not in said:
            if _WIDTH.search(said):
                return self.server.error(f"wants no embeddings of width {width} ({said})", EXPORT)
            if _CONTEXT.search(said):
                return self._too_long(f" ({said})")
        return self.server.error(f"takes no prompt_embeds ({refused})", START)

    def _too_long(self, why: str) -> ServedModelError:
        return self.server.error(
            f"the prompt does not fit into the context{why}",
            "start the server with a larger --max-model-len",
        )


def open_vllm(
    name: str,
    *,
    device: str,
    options: Mapping[str, Any],
    base: Callable[[], StreamModel],
    spend: Spend | None = None,
) -> EmbeddedGenerator:
    """Open the language model of one of our models behind vLLM.

    Args:
        name: ``URL#NAME``; without ``#NAME`` the only model that the server has.
        device: not used: the server decides.
        options: fields of ``ServerOptions``.
        base: gives the model whose tokens are read.
        spend: the budget that its requests count against.

    Raises:
        ConfigError: no address, no such option, or a model that is none of ours.
        ServedModelError: the server is not there, or has no such model.
    """
    url, served = openai_address("vllm", name)
    checked = override(ServerOptions(), options, f"vllm:{served}: ")
    server = Server(url, "vLLM", START, checked, spend or Spend())

    def open_model() -> VideoModel:
        model = base()
        if not isinstance(model, VideoModel):
            raise ConfigError(f"vllm: reads tokens of a model of ours, which {model.name} is not")
        return replace(model, open_language=partial(checkpoint.open_embeddings, model.name))

    return EmbeddedGenerator(server, served, open_model)
