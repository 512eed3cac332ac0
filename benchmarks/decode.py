"""What a caption's words cost, and what the cheaper arithmetic changes in them.

One thread. Times are CPU seconds, so that other programs on the machine distort them little; the
routes take turns caption by caption, and ratios are medians over captions. "baseline" is eager
float32 ``generate`` of transformers, "exact" and "half" are ours (see backbones/decoding.py).

A step is the mean of a caption's tokens after the first, since "exact" decodes several at once. Its
bound is the time in which this machine, between the captions of the same run, sums
256 MiB, scaled to the bytes of the float32 weights: each step has to read all of them.

"together" counts the texts that are equal in a batch and in each prompt's own stream.

Quality is teacher-forced along human captions: how often the likeliest next token is the exact
route's, and the mean KL divergence from the exact route's distribution.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import machine
from streammem.evaluation.datasets import read_photo, read_photos
from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.checkpoint import load_checkpoint
from streammem.models.threads import limit_threads
from streammem.models.tiny.model import CAPTION_DECODING, VideoModel

MIB = 1 << 20
ROUTES = ("baseline", "exact", "half")
BATCHES = (8, 16, 64)
TOGETHER = (3, 8, 16)
QUALITY_BATCH = 25
PARTS = ("single", "batched", "together", "quality")

Prompt = list[str | Tensor]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks decode", description=__doc__)
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--captions", type=int, default=100, help="captions a route")
    parser.add_argument("--scored", type=int, default=200, help="for the quality, and together")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args(argv)
    if not (data := os.environ.get("STREAMMEM_DATA")):
        print("needs STREAMMEM_DATA, a folder with flickr8k in it", file=sys.stderr)
        return 1
    limit_threads(busy=os.cpu_count() or 1)  # one thread
    model = load_checkpoint(options.model)
    scored = options.scored if {"together", "quality"} & set(options.parts) else 0
    photos = read_photos(Path(data, "flickr8k"), "val")[: max(options.captions, scored)]
    routes = opened(model)
    prompts = [prompt(model, read_photo(photo.path)) for photo in photos]
    human = [photo.captions[0] for photo in photos[: options.scored]]
    work: dict[str, Callable[[], object]] = {
        "single": lambda: single(routes, prompts[: options.captions]),
        "batched": lambda: batched(routes, prompts),
        "together": lambda: together(routes["half"], prompts[: options.scored]),
        "quality": lambda: quality(routes, prompts[: options.scored], human),
    }
    with torch.inference_mode():
        figures = {part: work[part]() for part in PARTS if part in options.parts}
    print(json.dumps({"benchmark": "decode", **figures, "machine": machine()}))
    return 0


def opened(model: VideoModel) -> dict[str, CausalLanguageModel]:
    """Return one language model a route, of the same weights; the baseline keeps its own copy."""
    plain = model.open_language()
    return {
        "baseline": plain,
        "exact": CausalLanguageModel(model.language.model, plain.tokenizer, decoding="exact"),
        "half": CausalLanguageModel(plain.model, plain.tokenizer, decoding="half"),
    }


def prompt(model: VideoModel, pixels: object) -> Prompt:
    return model.caption_prompt(model.encode_frames([model.perceive(pixels).patches], [0.5]))


def single(routes: dict[str, CausalLanguageModel], prompts: Sequence[Prompt]) -> dict[str, object]:
    """Caption one by one, the routes in turn."""
    language, memory = routes["baseline"], torch.ones(64 * MIB)
    num_bytes = sum(p.numel() * 4 for p in language.model.parameters())
    texts: dict[str, list[str]] = {name: [] for name in ROUTES}
    spent: dict[str, list[float]] = {name: [] for name in ROUTES}
    steps: dict[str, list[float]] = {name: [] for name in ROUTES}
    bounds: list[float] = []
    for warm, row in [(True, prompts[0]), *((False, p) for p in prompts)]:
        bound = _timed(memory.sum)[1] * num_bytes / (256 * MIB)
        results = {}
        for name in ROUTES:
            results[name] = _timed(partial(_caption, routes, name, row))
        if warm:
            continue
        bounds.append(bound)
        for name, ((text, step_s), total_s) in results.items():
            texts[name].append(text)
            spent[name].append(total_s)
            steps[name].append(step_s)
    return {"captions": len(prompts), **_table(texts, spent, steps, bounds)}


def _caption(routes: dict[str, CausalLanguageModel], name: str, row: Prompt) -> tuple[str, float]:
    """Return a caption and the CPU seconds of a step after the first."""
    language = routes[name]
    clock = Ticks()
    if name == "baseline":  # which announces the prompt too
        ids = language.model.generate(
            inputs_embeds=language.embed(row)[None],
            attention_mask=torch.ones(1, len(language.embed(row)), dtype=torch.long),
            max_new_tokens=CAPTION_DECODING.max_new_tokens,
            do_sample=False,
            eos_token_id=language.stop_id,
            pad_token_id=language.stop_id,
            streamer=clock,
        )
        text = language.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
        del clock.times[0]
    else:
        text = ""
        for piece in language.stream(row, CAPTION_DECODING):
            text += piece
            clock.put(None)
        clock.put(None)  # the token that ends it is no text
        text = text.strip()
    return text, clock.mean()


class Ticks:
    """Stands where transformers expects a streamer, and notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: object) -> None:
        self.times.append(time.process_time())

    def end(self) -> None:
        pass

    def mean(self) -> float:
        return (self.times[-1] - self.times[0]) / max(1, len(self.times) - 1)


def _table(texts, spent, steps, bounds) -> dict[str, object]:
    bound_s = statistics.median(bounds)
    print(f"one by one; reading the float32 weights once takes {bound_s * 1e3:.1f} ms")
    figures: dict[str, object] = {"bound_ms": round(bound_s * 1e3, 2)}
    for name in ROUTES:
        step = statistics.median(steps[name])
        ratio = _ratio(spent["baseline"], spent[name])
        share = statistics.median(b / s for b, s in zip(bounds, steps[name], strict=True))
        same = sum(a == b for a, b in zip(texts[name], texts["baseline"], strict=True))
        figures[name] = {
            "step_ms": round(step * 1e3, 1),
            "caption_ms": round(statistics.median(spent[name]) * 1e3),
            "step_speedup": round(_ratio(steps["baseline"], steps[name]), 2),
            "caption_speedup": round(ratio, 2),
            "share_of_float32_bound": round(share, 3),
            "same_text": same,
        }
        print(
            f"  {name:9} {step * 1e3:7.1f} ms a step {statistics.median(spent[name]):6.2f} s a "
            f"caption, {ratio:5.2f}x, {share:6.1%} of the bound, {same}/{len(texts[name])} texts"
        )
    return figures


def batched(
    routes: dict[str, CausalLanguageModel], prompts: Sequence[Prompt], rounds: int = 3
) -> dict[str, object]:
    """Caption in batches, a few captions of the baseline one by one between them."""
    figures: dict[str, object] = {}
    print("batched, captions a minute of CPU against the baseline one by one")
    for size in BATCHES:
        rates: dict[str, list[float]] = {name: [] for name in ROUTES}
        for turn in range(rounds):
            rows = [prompts[(turn * size + i) % len(prompts)] for i in range(size)]
            alone = [_timed(partial(_caption, routes, "baseline", r))[1] for r in rows[:4]]
            rates["baseline"].append(60 / statistics.mean(alone))
            for name in ROUTES[1:]:
                spent_s = _timed(partial(routes[name].generate, rows, CAPTION_DECODING))[1]
                rates[name].append(60 * size / spent_s)
        for name in ROUTES[1:]:
            ratio = _ratio(rates[name], rates["baseline"])
            rate = statistics.median(rates[name])
            figures[f"{name}_{size}"] = {"per_minute": round(rate), "speedup": round(ratio, 2)}
            print(f"  {name:9} batch {size:3} {rate:7.0f} a minute, {ratio:5.2f}x")
    return figures


def together(language: CausalLanguageModel, prompts: Sequence[Prompt]) -> dict[str, int]:
    """Count the prompts that get the same text in batches as alone."""
    alone = ["".join(language.stream(each, CAPTION_DECODING)).strip() for each in prompts]
    figures = {"captions": len(prompts)}
    for size in TOGETHER:
        batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        outputs = [text for b in batches for text in language.replies(b, CAPTION_DECODING)]
        texts = [replies[0].text for replies in outputs if replies is not None]
        figures[f"same_{size}"] = sum(a == b for a, b in zip(texts, alone, strict=True))
        print(f"half in batches of {size}: {figures[f'same_{size}']} of {len(prompts)} as alone")
    return figures


def quality(
    routes: dict[str, CausalLanguageModel], prompts: Sequence[Prompt], captions: Sequence[str]
) -> dict[str, float]:
    """Compare the half route with the exact one along human captions."""
    agreed, divergence, count = 0, 0.0, 0
    for begin in range(0, len(prompts), QUALITY_BATCH):
        rows = prompts[begin : begin + QUALITY_BATCH]
        references = captions[begin : begin + QUALITY_BATCH]
        exact, half = (forced(routes[name], rows, references) for name in ("exact", "half"))
        truth, guess = exact.log_softmax(-1), half.log_softmax(-1)
        agreed += int((exact.argmax(-1) == half.argmax(-1)).sum())
        divergence += float((truth.exp() * (truth - guess)).sum())
        count += len(exact)
    figures = {"tokens": count, "top1": agreed / count, "kl": divergence / count}
    print(
        f"half against exact over {count} tokens of {len(prompts)} human captions: "
        f"top-1 {figures['top1']:.2%}, KL {figures['kl']:.2e}"
    )
    return figures


def forced(
    language: CausalLanguageModel, rows: Sequence[Prompt], captions: Sequence[str]
) -> Tensor:
    """Return the logits [N, V] of every token of the captions and of their ends."""
    tokens = [language.ids(caption) for caption in captions]
    longest = max(len(ids) for ids in tokens)
    padded = torch.stack([F.pad(torch.tensor(ids), (0, longest - len(ids))) for ids in tokens])
    decoder = language.decoder()
    run = decoder.start([language.embed(row) for row in rows], longest)
    logits = [run.logits]
    for column in padded.T:
        run.feed(column)
        logits.append(run.logits)
    lengths = torch.tensor([len(ids) for ids in tokens])
    within = torch.arange(longest + 1)[:, None] <= lengths  # [T + 1, B]
    return torch.stack(logits)[within]


def _timed(work: Callable[[], object]) -> tuple[object, float]:
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
