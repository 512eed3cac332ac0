"""Any image-text-to-text model of transformers as a generator: pictures and text in, text out.

    generator = open_transformers("HuggingFaceTB/SmolVLM2-256M-Video-Instruct")
    prompt = generator.caption_prompt(EvidenceItem(4.0, 9.0, keyframes=(picture,)))
    ((reply,),) = [each for each in generator.replies([prompt], generator.decoding) if each]

Weights come from a folder or from the hub's cache on this computer, never from the network; see
``hub.py`` for fetching them. Perception and keys are another model's (see ``ComposedModel``).
"""

import logging
from collections.abc import Generator as Steps
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast, get_args, get_type_hints

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, Cache
from transformers import GenerationConfig as TransformersDecoding

from streammem.config import override
from streammem.errors import BackboneError, ConfigError
from streammem.models.backbones.language import (
    CANDIDATE_TEMPERATURE,
    GenerationConfig,
    GrowingReply,
    Prompt,
    Replies,
)
from streammem.models.backbones.sampling import penalised, pick
from streammem.models.backbones.static_decoding import CachePool, StaticRun, has_static_cache
from streammem.models.backbones.transformers_files import (
    Quantize,
    attention_choice,
    quantization,
)
from streammem.models.backbones.weights import check_complete
from streammem.models.once import once, opening
from streammem.models.protocols import EvidenceItem, Reads
from streammem.models.vlm.chat_pictures import ChatPictures, PicturePrompt, open_processor
from streammem.models.vlm.hub import local_folder
from streammem.models.vlm.prompts import Part, answer_parts, caption_parts
from streammem.perception.frames import KEYFRAME_SIDE

log = logging.getLogger(__name__)

TEXT_TOKENS = 1024  # of a prompt, set aside beside its pictures


@dataclass(frozen=True, slots=True)
class TransformersOptions:
    """How a model of transformers is run.

    Attributes:
        revision: branch, tag or commit of the hub's repository; empty takes ``main``.
        dtype: of the weights; ``auto`` is float32 on a CPU (where bfloat16 is slower without
            hardware for it) and bfloat16 elsewhere; ``checkpoint`` takes the files' own.
        device_map: of accelerate, such as ``auto``, which spreads the model over all GPUs; empty
            puts all of it on one device.
        attention: ``auto`` is flash-attn on CUDA where it is installed, 3 on Hopper, else 2, else
            4, and SDPA elsewhere and for float32;
            anything else goes to transformers as ``attn_implementation``: ``sdpa``, ``eager``,
            ``flex_attention``, ``flash_attention_2``, ``_3`` or ``_4``.
        quantize: of the weights, through bitsandbytes; on CUDA or the CPU.
        pictures: in one prompt at most, >= 1; fewer where the model's context is too short.
            Raising it lets an answer rest on more evidence, and takes time and memory.
        caption_pictures: keyframes that a caption is made from, in [1, 4].
        batch: scenes that are captioned together, >= 1; 0 takes 1 on a CPU and 8 elsewhere. In a
            batch the last bit of a logit may differ: of two equally likely words a caption may
            then take the other.
        cache: ``static`` is ours, whose steps are CUDA graphs on CUDA; anything else goes to
            transformers, such as ``dynamic`` or ``quantized``. Empty takes ``static`` on CUDA for
            models all of whose layers attend to everything, and the model's own elsewhere.
        max_new_tokens: of a caption.
        instruction: what a caption is asked by; empty takes ``prompts.CAPTION_REQUEST``.
        image: options of the model's image processor, over those of its file.
    """

    revision: str = ""
    dtype: Literal["auto", "checkpoint", "float32", "bfloat16", "float16"] = "auto"
    device_map: str = ""
    attention: str = "auto"
    quantize: Quantize = "none"
    pictures: int = 8
    caption_pictures: int = 4
    batch: int = 0
    cache: str = ""
    max_new_tokens: int = 48
    instruction: str = ""
    image: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            choices = get_args(hint) if isinstance(value, str) else ()
            if choices and value not in choices:
                raise ConfigError(f"{name}={value!r}: give one of {', '.join(choices)}")
        if self.pictures < 1 or self.batch < 0:
            raise ConfigError("pictures must be >= 1, and batch >= 0")
        if not 1 <= self.caption_pictures <= 4:
            raise ConfigError(f"caption_pictures={self.caption_pictures}: give 1 to 4")
        GenerationConfig(max_new_tokens=self.max_new_tokens)  # refuses what it would


class TransformersGenerator:
    """Writes captions and answers from pictures and text.

    Each generation has a state of its own, so that a question may come between the words of a
    caption. Threads may share it; the model is opened by the first that generates.

    Args:
        name: of the model, for messages.
        folder: of its files.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        options: how it is run.

    Raises:
        BackboneError: its processor cannot be opened, or shows no pictures.
        ConfigError: options that cannot be met here.
    """

    def __init__(self, name: str, folder: Path, device: str, options: TransformersOptions) -> None:
        quantization(options.quantize, device)  # refuses what cannot run before anything is read
        self.name, self._options = name, options
        self._device = device
        try:
            with opening(f"{name}: processor"):
                processor = open_processor(folder)
        except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
            if isinstance(error, BackboneError):
                raise
            raise _unusable(name, error) from error
        self._chat = ChatPictures(processor, name, options.image)
        self._open_model = once(
            lambda: _open_model(name, folder, device, options, self._chat), name
        )
        self.context, pictures = _context(name, folder, self._chat, options)
        self.reads = Reads(pictures=pictures)
        self.decoding = GenerationConfig(max_new_tokens=options.max_new_tokens)
        self._batch = options.batch or (1 if device == "cpu" else 8)

    @property
    def batches(self) -> bool:
        """Whether prompts are continued together in less time than one by one."""
        return self._batch > 1

    def caption_prompt(self, item: EvidenceItem, instruction: str | None = None) -> Prompt:
        """Build the prompt that describes a scene from at most ``caption_pictures`` keyframes."""
        most = min(self._options.caption_pictures, self.reads.pictures)
        return _on_lines(
            caption_parts(item, instruction or self._options.instruction or None, most)
        )

    def answer_prompt(self, items: Sequence[EvidenceItem], question: str) -> Prompt:
        """Build the prompt that answers from evidence, which comes in time order."""
        return _on_lines(answer_parts(items, question))

    # What a check asks besides, see check.py.
    is_served = False

    @property
    def about(self) -> str:
        """Which model it is, its size, and where it runs; opens it."""
        model = self._open_model().model
        size = sum(weight.numel() for weight in model.parameters()) / 1e6
        dtype = str(model.dtype).removeprefix("torch.")
        attention = model.config._attn_implementation
        return f"{self.name} ({size:,.0f} M parameters, {dtype}, {attention}) on {model.device}"

    @property
    def most_pictures(self) -> int:
        """Of a prompt, by its options and its context."""
        return self.reads.pictures

    @property
    def caption_pictures(self) -> int:
        """Of a caption, by its options."""
        return self._options.caption_pictures

    def count(self, parts: Sequence[Part]) -> tuple[int, int]:
        """Return how many tokens a prompt takes, and its cheapest picture."""
        bare = self._num_tokens([""])
        each = [self._num_tokens(["", part]) - bare for part in parts if not isinstance(part, str)]
        return self._num_tokens(_on_lines(parts)), min(each, default=0)

    def ask(self, parts: Sequence[Part], decoding: GenerationConfig) -> "CountedText":
        """Reply to a prompt as a whole."""
        prompt = _on_lines(parts)
        ((reply,),) = [each for each in self.replies([prompt], decoding) if each]
        return CountedText(reply.text, self._num_tokens(prompt), len(reply.ids))

    def _num_tokens(self, prompt: Prompt) -> int:
        inputs = self._chat.inputs([cast(PicturePrompt, prompt)])
        return int(inputs["input_ids"].shape[1])

    @torch.inference_mode()
    def replies(
        self, prompts: Sequence[Prompt], decoding: GenerationConfig, candidates: int = 1
    ) -> Iterator[Replies | None]:
        """Yield replies in order, None after other steps; see ``protocols.Generator``.

        Of several candidates the first is the likeliest; the others are drawn from the prompt,
        which is read once.

        Raises:
            ConfigError: several candidates, where ``decoding`` asks for beams or a temperature.
        """
        alone = candidates > 1 or decoding.num_beams > 1
        size = 1 if alone else self._batch
        seeds: list[int | None] = [decoding.seed]
        if candidates > 1:
            if decoding.num_beams > 1 or decoding.temperature > 0:
                raise ConfigError(
                    "several candidates need greedy decoding: no beams, temperature 0"
                )
            decoding = replace(decoding, temperature=CANDIDATE_TEMPERATURE)
            seeds = [None, *range(decoding.seed + 1, decoding.seed + candidates)]
        for begin in range(0, len(prompts), size):
            group = cast(Sequence[PicturePrompt], prompts[begin : begin + size])
            if decoding.num_beams > 1:
                yield (GrowingReply(self._searched(group[0], decoding), [], []),)
                continue
            rows = [ReplyRow([], []) for _ in range(len(group) * len(seeds))]
            for _ in self._steps(group, decoding, seeds, rows):
                yield None
            whole = [GrowingReply(self._text(row.ids), row.ids, row.log_probs) for row in rows]
            for number in range(len(group)):
                yield tuple(whole[number * len(seeds) : (number + 1) * len(seeds)])

    @torch.inference_mode()
    def stream(self, prompt: Prompt, decoding: GenerationConfig) -> Iterator[str]:
        """Yield a reply piece by piece; with beams as one piece."""
        asked = cast(PicturePrompt, prompt)
        if decoding.num_beams > 1:
            yield self._searched(asked, decoding)
            return
        row, given = ReplyRow([], []), ""
        for _ in self._steps([asked], decoding, [decoding.seed], [row]):
            text = self._text(row.ids)
            if len(text) > len(given):
                yield text[len(given) :]
                given = text
        if len(text := self._text(row.ids)) > len(given):
            yield text[len(given) :]

    def _steps(
        self,
        prompts: Sequence[PicturePrompt],
        decoding: GenerationConfig,
        seeds: Sequence[int | None],
        rows: "Sequence[ReplyRow]",
    ) -> Iterator[None]:
        """Fill the rows, a token of each that is not whole a step; ``len(seeds)`` a prompt."""
        steps = self._logits(prompts, decoding)
        stop = self._stop_ids
        generators = [
            None if seed is None else torch.Generator().manual_seed(seed % (1 << 63))
            for _ in prompts
            for seed in seeds
        ]
        going = set(range(len(rows)))
        logits = next(steps).repeat_interleave(len(seeds), dim=0)
        for left in reversed(range(decoding.max_new_tokens)):
            logits = penalised(logits, [row.ids for row in rows], decoding.repetition_penalty)
            tokens, log_probs = pick(logits, decoding, generators)
            for i in sorted(going):
                rows[i].ids.append(int(tokens[i]))
                rows[i].log_probs.append(float(log_probs[i]))
                if rows[i].ids[-1] in stop:
                    going.discard(i)
            if not going or not left:
                return
            yield None
            logits = steps.send(tokens)

    def _logits(
        self, prompts: Sequence[PicturePrompt], decoding: GenerationConfig
    ) -> Steps[Tensor, Tensor, None]:
        """Run ``_continue``; a prompt that the device has no room for is told as that."""
        try:
            inputs = self._inputs(prompts)
            pool = self._open_model().pool
            yield from self._generate(
                inputs, decoding, custom_generate=partial(_continue, pool=pool)
            )
        except torch.OutOfMemoryError as error:
            raise BackboneError(
                f"{self.name}: {self._device} has no room for {len(prompts)} prompts at a time; "
                "give it fewer: ?batch=1, ?pictures=4, or ?quantize=4bit"
            ) from error

    def _searched(self, prompt: PicturePrompt, decoding: GenerationConfig) -> str:
        inputs = self._inputs([prompt])
        ids = self._generate(inputs, decoding)[0, inputs["input_ids"].shape[1] :]
        return self._text(ids.tolist()).strip()

    def _generate(self, inputs: Any, decoding: GenerationConfig, **how: Any) -> Any:
        stop, opened = sorted(self._stop_ids), self._open_model()
        # Our own takes over behind the prompt, which transformers reads into its usual one.
        is_ours = opened.pool and "custom_generate" in how
        config = TransformersDecoding(
            max_new_tokens=decoding.max_new_tokens,
            num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty if decoding.num_beams > 1 else None,
            # Of what is sampled here `_steps` takes care, before each draw.
            repetition_penalty=decoding.repetition_penalty if decoding.num_beams > 1 else None,
            do_sample=False,
            eos_token_id=stop or None,
            pad_token_id=self._chat.processor.tokenizer.pad_token_id,
            cache_implementation=None if is_ours else self._options.cache or None,
        )
        return opened.model.generate(**inputs, generation_config=config, **how)

    def _inputs(self, prompts: Sequence[PicturePrompt]) -> Any:
        model = self._open_model().model
        return self._chat.inputs(prompts).to(model.device, dtype=model.dtype)

    @property
    def _stop_ids(self) -> frozenset[int]:
        return self._open_model().stop_ids

    def _text(self, ids: Sequence[int]) -> str:
        ended = bool(ids) and ids[-1] in self._stop_ids
        return self._chat.decoded(ids[:-1] if ended else ids).strip()


class CountedText(NamedTuple):
    """A reply, and how many tokens it and its prompt have."""

    text: str
    prompt_tokens: int
    reply_tokens: int


@dataclass(frozen=True, slots=True)
class ReplyRow:
    """A reply while it grows: its tokens and the log-probability of each."""

    ids: list[int]
    log_probs: list[float]


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    model: Any
    stop_ids: frozenset[int]
    pool: CachePool | None  # where steps are over our static caches


def open_transformers(
    name_or_path: str,
    *,
    device: str = "cpu",
    options: Mapping[str, Any] = MappingProxyType({}),
) -> TransformersGenerator:
    """Open an image-text-to-text model of transformers. Never the network.

    Args:
        name_or_path: a folder, or a name on the hub whose files are in its cache here; ``hf:``
            before it is left out.
        device: where it runs.
        options: fields of ``TransformersOptions``, each of which has a default.

    Raises:
        ConfigError: options that there are not, or that cannot be met here.
        BackboneError: it is not here, or cannot be opened; the weights are read when first used.
    """
    name = name_or_path.removeprefix("hf:")
    said = dict(options)
    image = said.pop("image", {})
    if not isinstance(image, Mapping):
        raise ConfigError(
            f"{name}: image={image!r}: takes a table of the image processor's options"
        )
    made = replace(override(TransformersOptions(), said, f"{name}: "), image=image)
    return TransformersGenerator(name, local_folder(name, made.revision), device, made)


def _on_lines(parts: Sequence[str | np.ndarray]) -> Prompt:
    """Put each part of a prompt on a line of its own, since templates join them as they are."""
    lines: list[str | np.ndarray] = []
    for number, part in enumerate(parts):
        if isinstance(part, str):
            begin = "\n" if number and not isinstance(parts[number - 1], str) else ""
            part = f"{begin}{part}" + ("\n" if number < len(parts) - 1 else "")
        lines.append(part)
    return lines


def _continue(
    model: Any,
    input_ids: Tensor,
    *,
    generation_config: Any,
    pool: CachePool | None = None,
    **kwargs: Any,
) -> Steps[Tensor, Tensor, None]:
    """Yield the logits [B, V] of the next token of each row, and take the tokens to go on with.

    ``generate`` calls it once it has made positions, mask and cache. If N times as many tokens
    come as there are rows, each row goes on N times. With a pool, all that comes behind the prompt
    is read into one of its caches.
    """
    for unused in ("logits_processor", "stopping_criteria", "synced_gpus", "streamer"):
        kwargs.pop(unused, None)
    fed = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **kwargs)
    while True:
        outputs = model(**fed, return_dict=True)
        kwargs = model._update_model_kwargs_for_generation(outputs, kwargs)
        logits = outputs.logits[:, -1].float()
        tokens = yield logits
        if pool:
            room = generation_config.max_new_tokens
            yield from _continue_static(pool, model, input_ids, logits, tokens, room, kwargs)
            return
        if (times := len(tokens) // len(input_ids)) > 1:
            _repeat(kwargs, len(input_ids), times, input_ids.device)
            input_ids = input_ids.repeat_interleave(times, dim=0)
        input_ids = torch.cat([input_ids, tokens.to(input_ids)[:, None]], dim=1)
        fed = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **kwargs)


def _continue_static(
    pool: CachePool,
    model: Any,
    input_ids: Tensor,
    logits: Tensor,
    tokens: Tensor,
    room: int,
    kwargs: dict[str, Any],
) -> Steps[Tensor, Tensor, None]:
    """Go on as ``_continue`` does behind a prompt, by steps of one shape."""
    (cache,) = (value for value in kwargs.values() if isinstance(value, Cache))
    layers: list[Any] = [(layer.keys, layer.values) for layer in cast(Any, cache.layers)]
    count, length = len(input_ids), layers[0][0].shape[2]
    mask = kwargs.get("attention_mask")  # None where nothing is padded
    readable = input_ids.new_ones(count, length) if mask is None else mask[:, :length]
    # The model's own positions of the next token, on as many axes as it has.
    longer = torch.cat([input_ids, tokens[:: len(tokens) // count].to(input_ids)[:, None]], dim=1)
    fed = model.prepare_inputs_for_generation(longer, next_sequence_length=1, **kwargs)
    places = fed.get("position_ids")
    places = readable.sum(1) if places is None else places[..., -1]
    times = len(tokens) // count
    run = StaticRun(pool, layers, readable.bool(), places, logits, room, times)
    if times > 1:
        run.take(torch.arange(count).repeat_interleave(times))
    while True:
        run.feed(tokens)
        tokens = yield run.logits


def _repeat(kwargs: dict[str, Any], num_rows: int, times: int, device: torch.device) -> None:
    """Repeat each row of what is carried from step to step."""
    for name, value in kwargs.items():
        if isinstance(value, Cache):
            rows = torch.arange(num_rows, device=device).repeat_interleave(times)
            value.reorder_cache(cast(torch.LongTensor, rows))  # every kind has it, for beams
        elif name == "position_ids" and value is not None:  # [B, T], or [axes, B, T]
            kwargs[name] = value.repeat_interleave(times, dim=-2)
        elif isinstance(value, Tensor) and name.endswith(("attention_mask", "token_type_ids")):
            kwargs[name] = value.repeat_interleave(times, dim=0)


def _open_model(
    name: str, folder: Path, device: str, options: TransformersOptions, chat: ChatPictures
) -> _Opened:
    """Read the weights, in evaluation mode."""
    auto = torch.float32 if device == "cpu" else torch.bfloat16
    dtypes: dict[str, Any] = {"auto": auto, "checkpoint": "auto"}
    dtype = dtypes.get(options.dtype) or getattr(torch, options.dtype)
    attention = options.attention
    if attention == "auto":
        attention = attention_choice(dtype)[0] if "cuda" in device else "sdpa"
    where: dict[str, Any] = {}
    if options.device_map:
        where["device_map"] = options.device_map
    if options.quantize != "none":
        where["quantization_config"] = quantization(options.quantize, device)
        where.setdefault("device_map", {"": device})
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            **where,
        )
        model, info = loaded
        check_complete(info, name)
        if not where:
            model.to(device)
    except BackboneError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise _unusable(name, error) from error
    ends = model.generation_config.eos_token_id
    stop = [*(ends if isinstance(ends, list) else [ends]), chat.processor.tokenizer.eos_token_id]
    # Penalties that come with a model would make a batch write other words than a stream.
    model.generation_config = TransformersDecoding()
    # A model spread over devices has caches on each of them.
    is_static = options.cache == "static" or (not options.cache and "cuda" in device)
    is_static = is_static and not options.device_map and has_static_cache(model)
    return _Opened(
        model.eval().requires_grad_(False),
        frozenset(i for i in stop if i is not None),
        CachePool(model) if is_static else None,
    )


def _context(
    name: str, folder: Path, chat: ChatPictures, options: TransformersOptions
) -> tuple[int | None, int]:
    """Return the context, if it is known, and how many keyframes have room in a prompt."""
    blank = np.zeros((KEYFRAME_SIDE, KEYFRAME_SIDE, 3), np.uint8)
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        sizes = [chat.inputs([["", *shown]])["input_ids"].shape[1] for shown in ([], [blank])]
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise _unusable(name, error) from error
    each = sizes[1] - sizes[0]
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    count = options.pictures
    if context:
        count = min(count, (context - min(TEXT_TOKENS, context // 4)) // max(1, each))
    if count < 1:
        raise BackboneError(f"{name}: a picture takes {each} tokens, its context is {context}")
    log.info("%s: %d tokens a picture, %d pictures a prompt", name, each, count)
    return context, count


def _unusable(name: str, error: Exception) -> BackboneError:
    """Say in one line why a model cannot be opened."""
    reason = str(error).strip().partition("\n")[0]
    return BackboneError(f"{name}: not a usable image-text-to-text model ({reason})")
