"""A causal language model of transformers with visual tokens in its prompt.

Prompts are sequences of text and vectors, so there are no placeholder strings to collide with what
a user types. No memory and no prompt wording live here.
"""

import copy
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer
from transformers import GenerationConfig as TransformersDecoding

from streammem.errors import ConfigError
from streammem.models.backbones.chat_frame import chat_frame
from streammem.models.backbones.decoding import LlamaDecoder, Run, is_plain_llama, weights_version
from streammem.models.backbones.low_rank import LowRank
from streammem.models.backbones.products import Route, has_bfloat16, has_half
from streammem.models.backbones.sampling import GenerationConfig, penalised, pick
from streammem.models.backbones.static_decoding import (
    StaticDecoder,
    StaticRun,
    has_static_cache,
)
from streammem.models.backbones.transformers_decoding import TransformersRun, search
from streammem.models.backbones.transformers_files import open_causal, unusable
from streammem.models.once import PartLock, opening

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Beginnings:
    """Texts with which some of several candidates begin; a part of a prompt that is never read.

    Attributes:
        texts: each of another candidate, of half of the candidates at most. One that holds a stop,
            or leaves no token of ``max_new_tokens``, is left out: the reply would have none of its
            own.
        following: texts with the first token of one of which they go on, none of them empty; no
            texts for any token.
    """

    texts: tuple[str, ...]
    following: tuple[str, ...] = ()


# Text, visual tokens [N, L], and pictures [H, W, 3] uint8 RGB for models that read these.
Prompt = Sequence[str | Tensor | np.ndarray | Beginnings]
Decoding = Literal["auto", "exact", "half", "bfloat16", "static"]
MOST_SCORED = 128  # tokens scored at once; 25 MB of logits
CANDIDATE_TEMPERATURE = 0.5  # colder they are too alike, warmer too often wrong
DECODINGS: tuple[Decoding, ...] = ("auto", "exact", "half", "bfloat16", "static")
DECODING_VARIABLE = "STREAMMEM_DECODING"


class GrowingReply(NamedTuple):
    """One reply, token by token.

    Attributes:
        text: stripped.
        ids: tokens said; the token that ended the reply is among them, if one did.
        log_probs: of each token, as ``sampling.pick`` defines them; of those with which the reply
            was made to begin there are none.
    """

    text: str
    ids: list[int]
    log_probs: list[float]


class Draw(NamedTuple):
    """How one of the replies to a prompt is drawn.

    Attributes:
        seed: of its sampling; None takes the likeliest words.
        begun: tokens with which it begins.
        following: tokens of which one comes next; empty for any.
    """

    seed: int | None
    begun: tuple[int, ...] = ()
    following: tuple[int, ...] = ()


Replies = tuple[GrowingReply, ...]  # to one prompt


class CausalLanguageModel:
    """Text and visual tokens in, text out; greedy, sampled, beams, streamed or in batches.

    Threads may share it, each with generations of its own: the decoder is arranged once, and
    meanwhile, as while beams are searched, all others wait. Who changes its weights works alone.

    Args:
        model: a transformers causal language model, in evaluation mode.
        tokenizer: its tokenizer, with a chat template or without.
        decoding: ``exact`` is float32; ``half`` keeps a Llama's weights as float16; ``auto`` takes
            ``half`` where this CPU multiplies them fast; ``bfloat16`` is for samples in training.
            ``static`` keeps beginnings that prompts share and decodes over static caches, on CUDA
            by graphs; ``auto`` takes it there, and the variable ``STREAMMEM_DECODING`` stands for
            ``auto``.
        reopen: opens the same model again. With it, ``half`` does not hold the float32 weights
            beside its own, and beams and ``model`` read them again; without it they stay.

    Attributes:
        stops: texts at which a reply ends before them, besides the model's own tokens.
        caption_tokens: [N] int64 tokens, in order, of ``vocabulary`` "captions"; None without such
            a list. To be set before the first reply.

    Raises:
        ConfigError: ``half`` or ``bfloat16``, but it cannot run here.
    """

    def __init__(  # their own annotations mislead mypy
        self,
        model: Any,
        tokenizer: Any,
        *,
        decoding: Decoding = "auto",
        reopen: Callable[[], Any] | None = None,
    ) -> None:
        # Held while the weights are taken apart, read again or searched by beams, and for each
        # text: a fast tokenizer has state (whether a special token in a text counts as one).
        self._lock = PartLock()
        self._model, self.tokenizer = model, tokenizer
        self._reopen, self._edits = reopen, list[Callable[[Any], None]]()
        self._files = reopen
        # Whose weights are decoded with, and how they are changed; what came of it.
        self._base: tuple[CausalLanguageModel, Mapping[str, LowRank]] | None = None
        self._adapted: tuple[LlamaDecoder, LlamaDecoder] | None = None
        asked = os.environ.get(DECODING_VARIABLE) or "auto" if decoding == "auto" else decoding
        self._route = decoding_route(asked)
        self._is_static = takes_static(model, asked)
        self._prepared: tuple[tuple[int, ...], LlamaDecoder | StaticDecoder] | None = None
        self._embed = model.get_input_embeddings()
        self._stop_ids = _stop_ids(model, tokenizer)
        # The last ``Beginnings.following``, the same for every scene, and its first tokens.
        self._following: tuple[tuple[str, ...], tuple[int, ...]] = ((), ())
        self.stops: tuple[str, ...] = ()
        self.caption_tokens: Tensor | None = None
        # Penalties that come with a model would make a batch say other things than a stream.
        model.generation_config = TransformersDecoding()
        self.chat_prefix, self.chat_suffix = chat_frame(tokenizer)
        self._frame_ids = self.ids(self.chat_prefix), self.ids(self.chat_suffix)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        device: str = "cpu",
        decoding: Decoding = "auto",
        without_layers: bool = False,
    ) -> "CausalLanguageModel":
        """Open a model folder (never the network).

        Args:
            folder: config.json, safetensors, tokenizer.
            device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. float32 on CPU (there bfloat16 is
                slower without hardware for it), bfloat16 elsewhere.
            decoding: see the class.
            without_layers: read the embeddings only; it then embeds prompts for another process.

        Raises:
            ConfigError: as the class.
            BackboneError: missing or unreadable files.
        """
        try:
            with opening(f"{folder}: tokenizer"):
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            raise unusable(folder, error) from error
        reopen = partial(open_causal, folder, device, without_layers=without_layers)
        return cls(reopen(), tokenizer, decoding=decoding, reopen=reopen)

    @property
    def model(self) -> Any:
        """The model of transformers; once it was asked for, its weights stay in memory."""
        with self._lock:
            model = self._opened()
            self._reopen = None  # who has it may change it
            return model

    @model.setter
    def model(self, model: Any) -> None:
        with self._lock:
            self._model, self._reopen = model, None

    def edit(self, change: Callable[[Any], None]) -> None:
        """Let ``change`` alter the weights, now and whenever they are read again."""
        with self._lock:
            change(self._opened())
            self._edits.append(change)

    def adapted(
        self, changes: Mapping[str, LowRank], edit: Callable[[Any], None]
    ) -> "CausalLanguageModel":
        """Return a model with other weights, which shares this one's where these can be adapted.

        That is on the CPU, for a plain Llama; elsewhere it reads the files again.

        Args:
            changes: low-rank, of these weights, by module.
            edit: makes the same weights of those in the files.
        """
        other = copy.copy(self)  # the lock too: both have one tokenizer
        other._base, other._edits = (self, changes), [edit]
        other._model = other._prepared = None
        other._reopen = self._files
        return other

    def _opened(self) -> Any:
        """Return the model; read it again if it was taken apart. The lock is held."""
        if self._model is None:
            assert self._reopen is not None
            model = self._reopen()
            model.generation_config = TransformersDecoding()
            for edit in self._edits:
                edit(model)
            self._model = model  # not before: what failed half-way is tried again from the start
        return self._model

    @property
    def decoding(self) -> str:
        """How replies are decoded: one of ``DECODINGS``, or ``transformers`` for no plain Llama."""
        if self._is_static:
            return "static"
        if self._base:
            return self._base[0].decoding
        with self._lock:
            plain = self._model is None or is_plain_llama(self._model)
        return self._route if plain else "transformers"

    @property
    def is_on_gpu(self) -> bool:
        """Whether replies are decoded over static caches elsewhere than on the CPU."""
        return self._is_static and self._embed.weight.device.type != "cpu"

    @property
    def speaks_together(self) -> bool:
        """Whether ``replies`` continues prompts of one length together, if without beams."""
        decoder = self.decoder()
        return decoder is not None and decoder.rows_apart

    @property
    def width(self) -> int:
        """Width of the embeddings that a visual token must have."""
        return self._embed.weight.shape[1]

    @property
    def num_tokens(self) -> int:
        """Tokens that it knows."""
        return self._embed.weight.shape[0]

    @property
    def embedding_norm(self) -> float:
        """Mean norm of the token embeddings."""
        return self._embed.weight.float().norm(dim=-1).mean().item()

    @property
    def stop_id(self) -> int:
        """The token that ends a reply."""
        return self.tokenizer.eos_token_id

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a reply; ``stop_id`` is among them."""
        return self._stop_ids

    def ids(self, text: str) -> list[int]:
        """Tokenise text of our own without adding a beginning or an end.

        Special tokens are recognised in it, so what a user types must not come here.
        """
        with self._lock:
            return self.tokenizer(text, add_special_tokens=False).input_ids

    def text_ids(self, text: str) -> list[int]:
        """Tokenise text of anyone: a special token that is spelled out in it stays letters."""
        with self._lock:
            read = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(read.input_ids)

    def chat(self, content: Prompt) -> Prompt:
        """Frame content as one user turn that waits for the reply."""
        before, after = map(self.vectors, self._frame_ids)
        return [before, *content, after]

    def embed(self, prompt: Prompt) -> Tensor:
        """Embed a prompt.

        Args:
            prompt: text and [N, L] visual tokens, in order. Text is only text: a special token
                that is spelled out in it is read letter by letter.

        Returns:
            [T, L] in the model's dtype, on its device.

        Raises:
            TypeError: a picture, which no language model reads as it is.
        """
        parts = []
        for part in prompt:
            if isinstance(part, str):
                parts.append(self.vectors(self.text_ids(part)))
            elif isinstance(part, Tensor):
                parts.append(part.to(self._embed.weight))
            elif not isinstance(part, Beginnings):
                raise TypeError(f"a prompt of text and tokens, not of {type(part).__name__}")
        return torch.cat(parts)

    def vectors(self, ids: Sequence[int]) -> Tensor:
        """Embed ids, [N, L]."""
        with self._lock:  # the embeddings move when the decoder is arranged
            weight = self._embed.weight
            return self._embed(torch.tensor(list(ids), dtype=torch.long, device=weight.device))

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[str]:
        """Yield the text of one reply piece by piece; joined, the pieces are the reply.

        Args:
            prompt: see ``embed``.
            config: ``num_beams`` must be 1.

        Raises:
            ConfigError: at the call, for beams.
        """
        if config.num_beams > 1:
            raise ConfigError("beams cannot be streamed; use generate, or num-beams 1")
        return self._stream(self.embed(prompt), config)

    @torch.inference_mode()
    def _stream(self, embeddings: Tensor, config: GenerationConfig) -> Iterator[str]:
        generator = torch.Generator().manual_seed(config.seed)
        run = self._start([embeddings], config)
        ids: list[int] = []
        said = ""
        while True:
            logits, few = self._allowed(run, config)
            logits = penalised(logits, [ids], config.repetition_penalty, few)
            token = int(pick(logits, config, [generator], few=few)[0])
            if token in self._stop_ids:
                if rest := self._text(ids)[len(said) :]:
                    yield rest  # it might have begun a stop
                return
            ids.append(token)
            whole = self._text(ids)
            text, ended = self._before_stops(whole)
            last = len(ids) == config.max_new_tokens
            text = whole if last and not ended else text  # no stop will come any more
            if len(text) > len(said):
                yield text[len(said) :]
                said = text
            if ended or last:
                return
            run.feed(torch.tensor([token], device=embeddings.device))

    def pieces(self, prompt: Prompt, config: GenerationConfig) -> Iterator[str]:
        """Yield a reply as ``stream`` does; with beams as one piece."""
        if config.num_beams > 1:
            return iter(self.generate([prompt], config))
        return self.stream(prompt, config)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], config: GenerationConfig) -> list[str]:
        """Reply to several prompts in one batch; each is what ``stream`` would say, stripped.

        Where float32 sums of a batch differ in the last bit (see ``candidates``), two words that
        are equally likely to that bit may change places.

        Args:
            prompts: see ``embed``; lengths may differ.
            config: shared by all; with sampling, each prompt draws as if it were alone.
        """
        rows = [self.embed(prompt) for prompt in prompts]
        if config.num_beams == 1:
            replies = self._sample(rows, config, [[Draw(config.seed)]] * len(rows))
            return [only.text for (only,) in replies]
        if not rows:
            return []
        with self._lock:  # another thread might arrange the same weights for the decoder
            said = search(self.model, rows, config, self._stop_ids)
        return [self._reply_text(ids) if ids else "" for ids in said]

    @torch.inference_mode()
    def candidates(
        self, prompts: Sequence[Prompt], config: GenerationConfig, count: int = 1
    ) -> list[Replies]:
        """Reply to each prompt ``count`` times; what a prompt gets does not depend on the others.

        Prompts go into one batch where that changes no logit, and one after another elsewhere; on
        CUDA into one, where the last bits of a logit may differ, so that of two words that are
        equally likely the other may be taken. The replies to one prompt are always a batch, and
        the prompt is read once.

        Args:
            prompts: see ``embed``; lengths may differ.
            config: shared by all. One reply is decoded as it says; of several the first is the
                greedy one, and reply j is drawn at ``CANDIDATE_TEMPERATURE`` with ``seed + j``, so
                that what a prompt gets does not depend on those beside it. The last ones begin
                with the prompt's ``Beginnings`` and go on greedily.
            count: replies a prompt, >= 1.

        Returns:
            ``count`` replies a prompt.

        Raises:
            ConfigError: several, where ``config`` asks for beams or a temperature.
        """
        if config.num_beams > 1 and count == 1:
            texts = [self.generate([prompt], config)[0] for prompt in prompts]
            return [(GrowingReply(text, [], []),) for text in texts]
        rows = [self.embed(prompt) for prompt in prompts]
        draws = iter([self._draws(prompt, config, count) for prompt in prompts])
        config = _candidate_decoding(config, count)
        return [
            tuple(replies)
            for group in self._groups(rows, count)
            for replies in self._sample(group, config, list(islice(draws, len(group))))
        ]

    @torch.inference_mode()
    def replies(
        self, prompts: Sequence[Prompt], config: GenerationConfig, count: int = 1
    ) -> Iterator[Replies | None]:
        """Reply to prompts as ``candidates`` does, word by word, and never other than to one alone.

        They are continued together where that changes no logit (on CUDA but for rounding), and one
        after another elsewhere.

        Yields:
            What ``candidates`` gives for each prompt in their order, as soon as it and all before
            it are whole; None after a token that made none whole.
        """
        if config.num_beams > 1 or (count > 1 and self.decoder() is None):
            for prompt in prompts:
                yield from self.candidates([prompt], config, count)
            return
        rows = [self.embed(prompt) for prompt in prompts]
        draws = iter([self._draws(prompt, config, count) for prompt in prompts])
        config = _candidate_decoding(config, count)
        for group in self._groups(rows, count):
            given = 0
            for replies in self._steps(group, config, list(islice(draws, len(group)))):
                whole = list(takewhile(bool, replies[given:]))
                ready = len(whole) // count
                yield from (
                    tuple(reply for reply in whole[i * count : (i + 1) * count] if reply)
                    for i in range(ready)
                )
                given += ready * count
                if not ready:
                    yield None

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[Prompt], config: GenerationConfig, *, count: int = 1
    ) -> list[list[GrowingReply]]:
        """Reply to each prompt several times, all in one batch; the prompts are read once.

        A weight that was changed in place since, by an optimiser for example, is taken as it is.

        Args:
            prompts: see ``embed``; lengths may differ.
            config: shared by all; ``num_beams`` must be 1. Reply j of prompt i draws with
                ``seed + i * count + j``, and whatever stands beside it in the batch, it is what it
                would be alone. Equal seeds would make the replies to all prompts err alike.
            count: replies a prompt, >= 1.

        Returns:
            ``count`` replies a prompt.

        Raises:
            ConfigError: for beams.
        """
        if config.num_beams > 1:
            raise ConfigError("beams are not samples; use generate, or num-beams 1")
        rows = [self.embed(prompt) for prompt in prompts]
        first = [config.seed + i * count for i in range(len(rows))]
        return self._sample(
            rows, config, [[Draw(seed + j) for j in range(count)] for seed in first]
        )

    @torch.inference_mode()
    def log_probs(self, prompt: Prompt, texts: Sequence[str]) -> list[list[float]]:
        """Return how likely each of several texts is behind a prompt, which is read once.

        Args:
            prompt: see ``embed``.
            texts: none of them empty.

        Returns:
            Of each text the log-probability of each of its tokens, given those before it.
        """
        ids = [self.text_ids(text) for text in texts]
        row, longest = self.embed(prompt), max(map(len, ids))
        config = GenerationConfig(max_new_tokens=longest)
        run, found = self._start([row], config, len(ids)), list[list[float]]([] for _ in ids)
        if isinstance(run, TransformersRun):  # its cache is of one row: a copy of it for each text
            for own, tokens in zip(found, ids, strict=True):
                forked = run.fork()
                for place, token in enumerate(tokens):
                    own.append(float(forked.logits.float().log_softmax(-1)[0, token]))
                    if place + 1 < len(tokens):
                        forked.feed(torch.tensor([token], device=row.device))
            return found
        run.take(torch.zeros(len(ids), dtype=torch.long))
        filled = [[*own, *own[-1:] * (longest - len(own))] for own in ids]
        padded = torch.tensor(filled, device=row.device)  # [N, L]
        scores = [run.logits.float().log_softmax(-1).gather(1, padded[:, :1])]
        # Many tokens at once take hardly longer than one, as the weights are read once.
        step = max(1, MOST_SCORED // len(ids)) if isinstance(run, Run) else 1
        for begin in range(0, longest - 1, step):
            end = min(begin + step, longest - 1)
            if isinstance(run, Run):
                logits = run.read_on(padded[:, begin:end])
            else:  # a static cache takes one token at a time
                run.feed(padded[:, begin])
                logits = run.logits[:, None]
            following = padded[:, begin + 1 : end + 1, None]
            scores.append(logits.float().log_softmax(-1).gather(2, following)[..., 0])
        rows = torch.cat(scores, 1).tolist()
        return [row[: len(own)] for row, own in zip(rows, ids, strict=True)]

    def _groups(self, rows: list[Tensor], count: int) -> list[list[Tensor]]:
        """Divide prompts of ``count`` replies into batches.

        Each has the logits there, to the bit, that it has alone; on a GPU but for rounding.
        """
        decoder = self.decoder()
        if isinstance(decoder, StaticDecoder):
            return decoder.groups(rows, count)
        together = rows and decoder is not None and decoder.are_apart(rows)
        return [rows] if together else [[row] for row in rows]

    def _draws(self, prompt: Prompt, config: GenerationConfig, count: int) -> list[Draw]:
        """Return how each of the ``count`` candidates of a prompt is drawn."""
        if count == 1:
            return [Draw(config.seed)]
        begun = [
            draw
            for part in prompt
            if isinstance(part, Beginnings)
            for draw in self._begun(part, config.max_new_tokens)
        ][: count // 2]
        free = [Draw(None), *(Draw(config.seed + j) for j in range(1, count - len(begun)))]
        return [*free, *begun]

    def _begun(self, beginnings: Beginnings, most: int) -> list[Draw]:
        """Return how replies of ``most`` tokens are drawn that begin as they may."""
        texts, following = self._following
        if texts != beginnings.following:
            following = tuple({self.text_ids(text)[0] for text in beginnings.following})
            self._following = beginnings.following, following
        draws = [Draw(None, tuple(self.text_ids(text)), following) for text in beginnings.texts]
        return [
            draw
            for draw in draws
            if len(draw.begun) < most
            and self._stop_ids.isdisjoint(draw.begun)
            and not self._before_stops(self._text(draw.begun))[1]
        ]

    def _sample(
        self, rows: list[Tensor], config: GenerationConfig, draws: Sequence[Sequence[Draw]]
    ) -> list[list[GrowingReply]]:
        """Reply to each row once for each of its draws, which are equally many."""
        if self.decoder() is None:  # transformers' cache pads no prompts: one after another
            return [
                [self._replies([row], config, [[draw]])[0] for draw in own]
                for row, own in zip(rows, draws, strict=True)
            ]
        replies = self._replies(rows, config, draws) if rows else []
        count = len(draws[0]) if rows else 1
        return [replies[i : i + count] for i in range(0, len(replies), count)]

    def _replies(
        self, rows: list[Tensor], config: GenerationConfig, draws: Sequence[Sequence[Draw]]
    ) -> list[GrowingReply]:
        *_, replies = self._steps(rows, config, draws)
        return [reply for reply in replies if reply]  # at last all are whole

    def _steps(
        self, rows: list[Tensor], config: GenerationConfig, draws: Sequence[Sequence[Draw]]
    ) -> Iterator[list[GrowingReply | None]]:
        """Generate a token of each reply a step; yield those that are whole, None for the others.

        Replies to one prompt are one row of the run until their tokens differ.
        """
        count = len(draws[0])
        run = self._start(rows, config, count)
        drawn = [draw for own in draws for draw in own]
        generators = [
            None if draw.seed is None else torch.Generator().manual_seed(draw.seed % (1 << 63))
            for draw in drawn
        ]
        said: list[tuple[list[int], list[float]]] = [([], []) for _ in generators]
        replies: list[GrowingReply | None] = [None for _ in generators]
        going = {number: number // count for number in range(len(said))}  # reply -> row of the run
        for left in reversed(range(config.max_new_tokens)):
            logits, few = self._allowed(run, config)
            if config.repetition_penalty != 1:
                before = {row: said[number][0] for number, row in going.items()}
                alike = [before[row] for row in range(len(logits))]
                logits = penalised(logits, alike, config.repetition_penalty, few)
            drawing = [generators[number] for number in going]
            among = {
                place: drawn[number].following
                for place, number in enumerate(going)
                if drawn[number].following and len(said[number][0]) == len(drawn[number].begun)
            }
            tokens, log_probs = pick(logits, config, drawing, list(going.values()), few, among)
            parted: dict[tuple[int, int], list[int]] = {}  # (row, token) -> the replies to go on
            for (number, row), token, log_prob in zip(
                going.items(), tokens.tolist(), log_probs.tolist(), strict=True
            ):
                ids, scores = said[number]
                begun = drawn[number].begun[len(ids) :]
                ids.append(begun[0] if begun else token)
                scores += [] if begun else [log_prob]
                if not left or self._is_end(ids):
                    replies[number] = GrowingReply(self._reply_text(ids), ids, scores)
                else:
                    parted.setdefault((row, ids[-1]), []).append(number)
            yield replies
            if not parted:
                return
            if not isinstance(run, TransformersRun):
                places = run.branch(list(parted))
            else:
                run.feed(torch.tensor([token for _, token in parted], device=tokens.device))
                places = [0]
            going = {
                number: place
                for place, numbers in zip(places, parted.values(), strict=True)
                for number in numbers
            }

    def _reply_text(self, ids: list[int]) -> str:
        whole = self._text(ids[:-1] if ids[-1] in self._stop_ids else ids)
        text, ended = self._before_stops(whole)
        return (text if ended else whole).strip()

    def _is_end(self, ids: list[int]) -> bool:
        """Whether the last token ends a reply, or completes one of ``stops``."""
        if ids[-1] in self._stop_ids:
            return True
        return bool(self.stops) and self._before_stops(self._text(ids))[1]

    def _before_stops(self, text: str) -> tuple[str, bool]:
        """Return what stands before a stop, and whether one is whole; the start of one waits."""
        found = [text.find(stop) for stop in self.stops if stop in text]
        if found:
            return text[: min(found)], True
        begun = [
            size
            for stop in self.stops
            for size in range(1, len(stop))
            if text.endswith(stop[:size])
        ]
        return text[: len(text) - max(begun, default=0)], False

    def _start(
        self, rows: list[Tensor], config: GenerationConfig, replies: int = 1
    ) -> "Run | StaticRun | TransformersRun":
        decoder = self.decoder()
        if decoder is None:
            return TransformersRun(self.model, rows[0])
        room, ends = config.max_new_tokens - 1, self._stop_ids  # the last token is said, never read
        if isinstance(decoder, StaticDecoder):
            return decoder.start(rows, room, ends, replies)
        few = config.vocabulary == "captions"
        return decoder.start(rows, room, ends, replies, held_to_few=few)

    def _allowed(
        self, run: "Run | StaticRun | TransformersRun", config: GenerationConfig
    ) -> tuple[Tensor, Tensor | None]:
        """Return a run's logits [B, V] of tokens that a reply may have, and these; None: of all."""
        if isinstance(run, Run):  # which computes no others
            return run.logits, run.few
        few = self.caption_tokens if config.vocabulary == "captions" else None
        if few is None:
            return run.logits, None
        few = few.to(run.logits.device)
        return run.logits[:, few], few

    def decoder(self) -> LlamaDecoder | StaticDecoder | None:
        """Return the decoder of the weights as they are now; None where transformers' cache is.

        The first thread to ask arranges it; others wait.
        """
        with self._lock:
            if self._base and (shared := self._shared_decoder(*self._base)):
                return shared
            if self._model is None and self._prepared:
                return self._prepared[1]
            model = self._opened()
            if not self._is_static and not is_plain_llama(model):
                return None
            version = weights_version(model)
            if self._prepared is None or self._prepared[0] != version:
                if self._is_static:
                    self._prepared = version, StaticDecoder(model, together=self.is_on_gpu)
                    return self._prepared[1]
                release = self._reopen is not None and self._route == "half"
                prefix = self.vectors(self._frame_ids[0])
                first, began = self._prepared is None, time.monotonic()
                if release:  # before it is taken apart: if that fails, the files are read again
                    self._model = self._prepared = None
                decoder = LlamaDecoder(
                    model, self._route, prefix, few=self.caption_tokens, release=release
                )
                self._prepared = version, decoder
                if first:  # not after each step of an optimiser
                    took_s = time.monotonic() - began
                    log.info("decoder (%s) arranged in %.1f s", self._route, took_s)
            return self._prepared[1]

    def _shared_decoder(
        self, base: "CausalLanguageModel", changes: Mapping[str, LowRank]
    ) -> LlamaDecoder | None:
        """Return the decoder of another model's weights with changes; None where it has another."""
        plain = base.decoder()
        if not isinstance(plain, LlamaDecoder):
            return None
        if self._adapted is None or self._adapted[0] is not plain:
            self._adapted = plain, plain.adapted(changes)
        return self._adapted[1]

    def _text(self, ids: Sequence[int]) -> str:
        """Decode the whole characters: the last one may lack bytes that later tokens bring."""
        with self._lock:
            text = self.tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return text.rstrip("\ufffd")


def _candidate_decoding(config: GenerationConfig, count: int) -> GenerationConfig:
    """Return how ``count`` replies to one prompt are decoded."""
    if count == 1:
        return config
    if config.num_beams > 1 or config.temperature > 0:
        raise ConfigError("several candidates need greedy decoding: no beams, temperature 0")
    return replace(config, temperature=CANDIDATE_TEMPERATURE)


def decoding_route(decoding: str) -> Route:
    """Choose how a Llama is decoded on this CPU.

    Raises:
        ConfigError: no such decoding, or one that cannot run here.
    """
    if decoding not in DECODINGS:
        given = f"decoding {decoding!r} (or {DECODING_VARIABLE})"
        raise ConfigError(f"{given}: give one of {', '.join(DECODINGS)}")
    if decoding == "half" and not has_half():
        raise ConfigError("decoding half: needs a torch with FBGEMM and AVX2; choose exact")
    if decoding == "bfloat16" and not has_bfloat16():
        raise ConfigError("decoding bfloat16: needs AVX-512 BF16 or AMX; choose exact")
    if decoding in ("auto", "static"):
        return "half" if has_half() else "exact"
    return cast(Route, decoding)


def takes_static(model: Any, decoding: str) -> bool:
    """Tell whether a model is decoded over static caches.

    Raises:
        ConfigError: that is asked for, and its layers cannot.
    """
    is_on_cuda = model.get_input_embeddings().weight.device.type == "cuda"
    if decoding != "static" and not (decoding == "auto" and is_on_cuda):
        return False
    fits = not hasattr(model, "get_base_model") and has_static_cache(model)
    if decoding == "static" and not fits:
        raise ConfigError("decoding static: some layers of this model do not attend to all columns")
    return fits


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return frozenset(i for i in ids if i is not None)
