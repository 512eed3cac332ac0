"""A causal language model of transformers with visual tokens in its prompt.

Prompts are sequences of text and vectors, so there are no placeholder strings to collide with what
a user types. No memory and no prompt wording live here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import GenerationConfig as TransformersDecoding

from streammem.errors import BackboneError, ConfigError

Prompt = Sequence[str | Tensor]


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How to decode.

    Attributes:
        max_new_tokens: upper bound of generated tokens, >= 1.
        temperature: >= 0, finite; 0 decodes greedily, higher values flatten the distribution.
        top_p: nucleus of the distribution that is sampled, in (0, 1].
        num_beams: beams kept; > 1 needs temperature 0 and cannot be streamed.
        length_penalty: exponent of the length norm of a beam's score; higher favours long text.
        seed: of sampling, in [0, 2^63).
    """

    max_new_tokens: int = 48
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ConfigError("max-new-tokens and num-beams must be at least 1")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise ConfigError("temperature must be a number >= 0 and top-p in (0, 1]")
        if not math.isfinite(self.length_penalty) or not 0 <= self.seed < 1 << 63:
            raise ConfigError("length-penalty must be a number, and seed in [0, 2^63)")
        if self.num_beams > 1 and self.temperature > 0:
            raise ConfigError("num-beams > 1 decodes by score: it needs temperature 0")


class CausalLanguageModel:
    """Text and visual tokens in, text out; greedy, sampled, beams, streamed or in batches.

    Args:
        model: a transformers causal language model, in evaluation mode.
        tokenizer: its tokenizer, with a chat template or without.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:  # their own annotations mislead mypy
        self.model, self.tokenizer = model, tokenizer
        self._embed = model.get_input_embeddings()
        self._stop_ids = _stop_ids(model, tokenizer)
        # Penalties that come with a model would make a batch say other things than a stream.
        model.generation_config = TransformersDecoding()
        self.chat_prefix, self.chat_suffix = _chat_frame(tokenizer)
        self._frame_ids = self.ids(self.chat_prefix), self.ids(self.chat_suffix)

    @classmethod
    def open(cls, folder: str | Path, *, device: str = "cpu") -> "CausalLanguageModel":
        """Open a model folder (never the network).

        Args:
            folder: config.json, safetensors, tokenizer.
            device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. float32 on CPU (there bfloat16 is
                slower without hardware for it), bfloat16 elsewhere.

        Raises:
            BackboneError: missing or unreadable files.
        """
        on_cuda = device.startswith("cuda")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32 if device == "cpu" else torch.bfloat16,
                attn_implementation=attention_implementation() if on_cuda else "sdpa",
            )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise BackboneError(f"{folder}: not a usable language model ({reason})") from error
        return cls(model.to(device).eval().requires_grad_(False), tokenizer)

    @property
    def width(self) -> int:
        """Width of the embeddings that a visual token must have."""
        return self._embed.weight.shape[1]

    @property
    def embedding_norm(self) -> float:
        """Mean norm of the token embeddings."""
        return self._embed.weight.float().norm(dim=-1).mean().item()

    @property
    def stop_id(self) -> int:
        """The token that ends a reply."""
        return self.tokenizer.eos_token_id

    def ids(self, text: str) -> list[int]:
        """Tokenise text of our own without adding a beginning or an end.

        Special tokens are recognised in it, so what a user types must not come here.
        """
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def chat(self, content: Prompt) -> list[str | Tensor]:
        """Frame content as one user turn that waits for the reply."""
        before, after = map(self._vectors, self._frame_ids)
        return [before, *content, after]

    def embed(self, prompt: Prompt) -> Tensor:
        """Embed a prompt.

        Args:
            prompt: text and [N, L] visual tokens, in order. Text is only text: a special token
                that is spelled out in it is read letter by letter.

        Returns:
            [T, L] in the model's dtype, on its device.
        """
        parts = []
        for part in prompt:
            if isinstance(part, str):
                text = self.tokenizer(part, add_special_tokens=False, split_special_tokens=True)
                parts.append(self._vectors(text.input_ids))
            else:
                parts.append(part.to(self._embed.weight))
        return torch.cat(parts)

    def _vectors(self, ids: list[int]) -> Tensor:
        return self._embed(torch.tensor(ids, dtype=torch.long, device=self._embed.weight.device))

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
        generator = torch.Generator(embeddings.device).manual_seed(config.seed)
        ids: list[int] = []
        said = ""
        fed, past = {"inputs_embeds": embeddings[None]}, None
        for _ in range(config.max_new_tokens):
            out = self.model(**fed, past_key_values=past, use_cache=True, logits_to_keep=1)
            past = out.past_key_values
            token = _pick(out.logits[0, -1], config, generator)
            if token in self._stop_ids:
                break
            ids.append(token)
            text = self._text(ids)
            if len(text) > len(said):
                yield text[len(said) :]
                said = text
            fed = {"input_ids": torch.tensor([[token]], device=embeddings.device)}

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], config: GenerationConfig) -> list[str]:
        """Reply to several prompts in one batch; each is what ``stream`` would say, stripped.

        Args:
            prompts: see ``embed``; lengths may differ.
            config: shared by all; with sampling, each prompt draws as if it were alone.
        """
        if not prompts:
            return []
        rows = [self.embed(prompt) for prompt in prompts]
        if config.temperature > 0:
            return ["".join(self._stream(row, config)).strip() for row in rows]
        longest = max(len(row) for row in rows)
        # Left padding: every row's next token then stands in the same column.
        batch = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        mask = torch.zeros(batch.shape[:2], dtype=torch.long, device=batch.device)
        for i, row in enumerate(rows):
            mask[i, longest - len(row) :] = 1
        ids = self.model.generate(
            inputs_embeds=batch,
            attention_mask=mask,
            max_new_tokens=config.max_new_tokens,
            num_beams=config.num_beams,
            length_penalty=config.length_penalty,
            do_sample=False,
            eos_token_id=sorted(self._stop_ids) or None,
            pad_token_id=min(self._stop_ids, default=0),
        )
        said = [takewhile(lambda i: i not in self._stop_ids, row) for row in ids.tolist()]
        return [self._text(list(row)).strip() for row in said]

    def _text(self, ids: list[int]) -> str:
        """Decode the whole characters: the last one may lack bytes that later tokens bring."""
        text = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text.rstrip("\ufffd")


def attention_implementation() -> str:
    """Name the attention to use on CUDA: flash-attn where it is installed, else SDPA."""
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if is_flash_attn_2_available() else "sdpa"


def _chat_frame(tokenizer: Any) -> tuple[str, str]:
    """Return what the chat template puts before and after a user's text, without a system turn."""
    # Models that are trained with a beginning-of-sequence token speak badly without it.
    begins = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    start = tokenizer.bos_token if begins else ""
    if not tokenizer.chat_template:
        return start, "\n"
    mark = "CONTENT"  # seen by the template only, never by a user's text
    user = {"role": "user", "content": mark}
    render = partial(tokenizer.apply_chat_template, tokenize=False)
    try:  # an empty system turn keeps some templates from adding one of their own
        system = [{"role": "system", "content": ""}]
        framed = render([*system, user], add_generation_prompt=True)
        framed = framed.removeprefix(render(system))
    except TemplateError:
        framed = render([user], add_generation_prompt=True)
    before, _, after = framed.partition(mark)
    return start + before.removeprefix(start), after


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return frozenset(i for i in ids if i is not None)


def _pick(logits: Tensor, config: GenerationConfig, generator: torch.Generator) -> int:
    if config.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float() / config.temperature, dim=-1)
    ranked, order = probabilities.sort(descending=True)
    # Keep the smallest set whose mass reaches top_p: a token stays if the mass before it is short.
    ranked[ranked.cumsum(0) - ranked >= config.top_p] = 0
    return int(order[torch.multinomial(ranked, 1, generator=generator)])
