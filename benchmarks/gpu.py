"""What a GPU should do with each preset, from counted bytes and flops; and what it does.

    python -m benchmarks gpu --predict     # the tables of docs/research/gpu.md; needs no GPU
    python -m benchmarks gpu               # also measures, in less than eight minutes

Three tables: presets, what each switch saves, and the kernels (``benchmarks/kernels.py``).
Networks of the presets' sizes with random weights are timed, so that nothing is fetched: times do
not depend on the values. What is left out: decoding video, the processors, and, of predictions,
Python between the launches of a prompt.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks import kernels
from streammem.models.backbones.static_decoding import StaticDecoder
from streammem.models.backbones.transformers_decoding import TransformersRun

# Data sheets: bytes a second, dense bfloat16 flops a second, bytes of memory.
GPUS = {
    "A10": (600e9, 125e12, 24e9),
    "A100": (2.04e12, 312e12, 80e9),
    "H100": (3.35e12, 989e12, 80e9),
    "H200": (4.8e12, 989e12, 141e9),
}
BYTES_SHARE, FLOPS_SHARE = 0.7, 0.5  # of the data sheet; assumed, to be replaced by measurements
FRAMES_A_SECOND, SCENE_S = 2, 10  # of one stream: frames encoded, seconds a caption
REPLY, TEXT, BATCH = 32, 64, 8  # tokens of a caption, of its prompt's words; captions together
FRAME_BATCH = 32  # frames encoded together
SIZE = 224  # side of EfficientNet-Lite2's picture
DEADLINE_S = 400  # no measurement begins later
# What Python adds where no graph replaces it, assumed: of a layer of transformers with its dozen
# launches, and of a convolution with its activation.
LAYER_S, CONVOLUTION_S = 0.5e-3, 20e-6
SWITCHED = ("streammem-tiny", "qwen3-vl-4b", "videollamb-7b")  # presets that show the switches


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision transformer: layers, width, hidden width of its MLP, patches of a picture."""

    layers: int
    width: int
    mlp: int
    patches: int

    @property
    def parameters(self) -> int:
        return self.layers * (4 * self.width**2 + 2 * self.width * self.mlp)

    @property
    def flops(self) -> int:
        """Of a picture: two a parameter and patch, and attention."""
        return 2 * self.parameters * self.patches + 4 * self.layers * self.patches**2 * self.width


@dataclass(frozen=True, slots=True)
class Language:
    """A causal language model of the Llama kind."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    mlp: int
    words: int

    @property
    def parameters(self) -> int:
        """Of the layers, without the embeddings."""
        attention = 2 * self.width * self.head * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.mlp)

    @property
    def read_bytes(self) -> int:
        """Weights that a step reads: the layers, and the words once for the logits."""
        return 2 * (self.parameters + self.width * self.words)

    @property
    def token_bytes(self) -> int:
        """Of the cache: keys and values of a token."""
        return 2 * 2 * self.layers * self.kv_heads * self.head

    def prefill_flops(self, tokens: int) -> int:
        """Of a prompt; of its causal attention only half."""
        attention = 2 * self.layers * tokens**2 * self.heads * self.head
        return 2 * self.parameters * tokens + attention + 2 * self.width * self.words


@dataclass(frozen=True, slots=True)
class Preset:
    """What a caption of a preset computes.

    Attributes:
        tower: of its pictures; None where visual tokens come from the encoder's patches.
        language: the language model.
        pictures: of a caption.
        tokens: visual tokens of a picture.
        every_frame: whether the tower, not EfficientNet-Lite2, encodes every frame.
    """

    tower: Tower | None
    language: Language
    pictures: int
    tokens: int
    every_frame: bool = False

    @property
    def prompt(self) -> int:
        return TEXT + self.pictures * self.tokens


QWEN3_4B = Language(36, 2560, 32, 8, 128, 9728, 151936)
QWEN3_8B = Language(36, 4096, 32, 8, 128, 12288, 151936)
SMOL_135M = Language(30, 576, 9, 3, 64, 1536, 49152)
# Layouts as published. Qwen3-VL sees keyframes of 640 x 352 as 880 patches, four a token; the
# others see one square tile a picture. Qwen3.5 is left out: its linear attention is not counted.
PRESETS = {
    "streammem-tiny": Preset(None, SMOL_135M, 1, 16),
    "smolvlm2-256m": Preset(Tower(12, 768, 3072, 1024), SMOL_135M, 2, 64),
    "smolvlm2-500m": Preset(
        Tower(12, 768, 3072, 1024), Language(32, 960, 15, 5, 64, 2560, 49152), 2, 64
    ),
    "qwen3-vl-4b": Preset(Tower(24, 1024, 4096, 880), QWEN3_4B, 4, 220),
    "qwen3-vl-8b": Preset(Tower(27, 1152, 4304, 880), QWEN3_8B, 4, 220),
    "internvl3.5-4b": Preset(Tower(24, 1024, 4096, 1025), QWEN3_4B, 4, 256),
    "internvl3.5-8b": Preset(Tower(24, 1024, 4096, 1025), QWEN3_8B, 4, 256),
    "llava-onevision-7b": Preset(
        Tower(27, 1152, 4304, 729), Language(28, 3584, 28, 4, 128, 18944, 152064), 4, 729
    ),
    # 1,440 visual tokens at most, of the frames that the tower has encoded already.
    "videollamb-7b": Preset(
        Tower(24, 1024, 4096, 257),
        Language(32, 4096, 32, 32, 128, 11008, 32000),
        10,
        144,
        every_frame=True,
    ),
}
OTHERS = """\
| another system | its own figure |
|---|---|
| StreamingVLM, 7B, one H100 | 8 frames a second with a comment each second; 0.05 s a token |
| VideoLLM-online, 8B, A100 | 10 to 15 frames a second of 10 tokens each |
| VSS, FP8, one H100 | 33 streams, each 10 s a caption of 80 frames of 448 x 448, in 4.8 s |"""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: a frame's encoding, a caption's pictures, its prompt, and steps.

    Attributes:
        frame: of ``FRAME_BATCH`` frames together, each.
        pictures: all of one caption.
        prefill: of one caption's prompt.
        step: of one token alone.
        batch_step: of a token of each of ``BATCH`` captions together.
    """

    frame: float
    pictures: float
    prefill: float
    step: float
    batch_step: float

    @property
    def first_word(self) -> float:
        return self.pictures + self.prefill

    @property
    def caption_s(self) -> float:
        """Of the GPU, for one of ``BATCH`` captions that are made together."""
        return self.pictures + self.prefill + REPLY * self.batch_step / BATCH

    @property
    def streams(self) -> int:
        """Streams that the GPU has the time for."""
        return int(1 / (FRAMES_A_SECOND * self.frame + self.caption_s / SCENE_S))


@dataclass(frozen=True, slots=True)
class Switches:
    """Seconds without a switch and with it.

    Attributes:
        token: of a token; by transformers' cache, and over a static cache as a CUDA graph.
        question: the first word of a further question on the same tokens; its prompt read whole,
            and behind the beginning that is kept.
        candidates: ``BATCH`` replies to one prompt; one by one, and as rows that share it.
        frame: of each frame; encoded alone, and ``FRAME_BATCH`` of many streams together.
    """

    token: tuple[float, float]
    question: tuple[float, float]
    candidates: tuple[float, float]
    frame: tuple[float, float]


def frame_counts(preset: Preset) -> tuple[int, int]:
    """Flops of a frame, and bytes."""
    if preset.every_frame and preset.tower:
        return preset.tower.flops, 2 * preset.tower.parameters // FRAME_BATCH
    return encoder_counts()


@cache
def encoder_counts() -> tuple[int, int]:
    """Flops of EfficientNet-Lite2, and bytes that its convolutions read and write."""
    with torch.device("meta"):
        net = encoder()
    flops = moved = 0

    def count(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal flops, moved
        kernel = layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels // layer.groups
        flops += 2 * output.numel() * kernel
        moved += 4 * (inputs[0].numel() + output.numel()) + 4 * layer.weight.numel() // FRAME_BATCH

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    net(torch.empty(1, 3, SIZE, SIZE, device="meta"))
    return flops, moved


def encoder() -> nn.Module:
    from streammem.models.backbones.efficientnet import EfficientNetLite

    return EfficientNetLite("lite2").eval().requires_grad_(False)


def predicted(preset: Preset, gpu: str) -> Times:
    """Each part takes as long as its bytes or its flops, whichever is longer."""
    bandwidth, peak, _ = GPUS[gpu]

    def seconds(flops: float, moved: float) -> float:
        return max(flops / (FLOPS_SHARE * peak), moved / (BYTES_SHARE * bandwidth))

    language, tower, prompt = preset.language, preset.tower, preset.prompt
    frame_flops, frame_bytes = frame_counts(preset)
    # EfficientNet-Lite2 is float32; its convolutions run as TF32, at half the rate.
    frame = seconds(frame_flops * (1 if preset.every_frame else 2), frame_bytes)
    pictures = 0.0
    if tower and not preset.every_frame:
        pictures = seconds(preset.pictures * tower.flops, 2 * tower.parameters)
    held = language.token_bytes * (prompt + REPLY)
    per_token = language.prefill_flops(1)
    return Times(
        frame,
        pictures,
        seconds(language.prefill_flops(prompt), language.read_bytes),
        seconds(per_token, language.read_bytes + held),
        seconds(BATCH * per_token, language.read_bytes + BATCH * held),
    )


def predicted_switches(preset: Preset, gpu: str) -> Switches:
    """What the same counts say of the switches, and ``LAYER_S`` and ``CONVOLUTION_S``."""
    times = predicted(preset, gpu)
    alone = max(times.step, preset.language.layers * LAYER_S)
    asked = predicted(replace(preset, pictures=0), gpu)
    layers = sum(isinstance(layer, nn.Conv2d) for layer in encoder().modules())
    frame = times.frame if preset.every_frame else max(times.frame, layers * CONVOLUTION_S)
    if preset.every_frame and preset.tower:
        frame = max(times.frame, preset.tower.layers * LAYER_S)
    return Switches(
        (alone, times.step),
        (times.prefill, asked.prefill),
        (
            BATCH * (times.prefill + REPLY * alone),
            times.prefill + REPLY * times.batch_step,
        ),
        (frame, times.frame),
    )


def shown_switches(name: str, pairs: Switches) -> str:
    """A row of the table of switches."""
    cells = (f"{1000 * before:.2f} > {1000 * after:.2f}" for before, after in astuple(pairs))
    return f"| {name} | " + " | ".join(cells) + " |"


SWITCHES_HEAD = """\
| ms, without > with | a token: graph | further question: kept beginning | 8 candidates: shared \
prompt | a frame: 32 together |
|---|---|---|---|---|"""


def needed_bytes(preset: Preset) -> int:
    """Of weights, and of the cache of ``BATCH`` captions."""
    tower = 2 * preset.tower.parameters if preset.tower else 0
    held = BATCH * preset.language.token_bytes * (preset.prompt + REPLY)
    return tower + preset.language.read_bytes + held


def tables() -> str:
    """The counts, and what they predict."""
    lines = [
        "| preset | a frame | a caption's pictures | its prompt | a token reads | its cache |",
        "|---|---|---|---|---|---|",
    ]
    for name, preset in PRESETS.items():
        flops, moved = frame_counts(preset)
        language, tower = preset.language, preset.tower
        pictures = "none"
        if tower and preset.every_frame:
            pictures = "its frames"
        elif tower:
            pictures = f"{preset.pictures} x {tower.flops / 1e9:.0f} GF"
        lines.append(
            f"| {name} | {flops / 1e9:.1f} GF, {moved / 1e6:.0f} MB | {pictures} | {preset.prompt} "
            f"tokens, {language.prefill_flops(preset.prompt) / 1e12:.2f} TF | "
            f"{language.read_bytes / 1e9:.2f} GB | {language.token_bytes / 1e3:.0f} kB |"
        )
    lines += ["", "| preset | " + " | ".join(GPUS) + " |", "|---|" + "---|" * len(GPUS)]
    for name, preset in PRESETS.items():
        cells = []
        for gpu, (_, _, memory) in GPUS.items():
            times = predicted(preset, gpu)
            cells.append(
                "too large"
                if needed_bytes(preset) > 0.9 * memory
                else f"{1 / times.frame:.0f} / {1000 * times.first_word:.1f} / {times.streams}"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", SWITCHES_HEAD]
    lines += [
        shown_switches(f"{name}, {gpu}", predicted_switches(PRESETS[name], gpu))
        for name in SWITCHED
        for gpu in ("A100", "H100")
    ]
    return "\n".join([*lines, "", OTHERS])


def build_language(sizes: Language, device: str, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head,
        vocab_size=sizes.words,
        tie_word_embeddings=True,
        pad_token_id=None,
    )
    with torch.device(device):
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    return model.eval().requires_grad_(False)


def build_tower(tower: Tower, device: str, dtype: torch.dtype) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        tower.width, tower.width // 64, tower.mlp, activation="gelu", batch_first=True,
        norm_first=True, device=device, dtype=dtype,
    )  # fmt: skip
    return nn.TransformerEncoder(layer, tower.layers, enable_nested_tensor=False).eval()


def least_seconds(call: Callable[[], object], device: str, count: int) -> float:
    """Least time of a call, after one that warms up."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    call()
    times = []
    for _ in range(count):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.inference_mode()
def measured(preset: Preset, device: str, *, count: int = 5) -> Times:
    """Time a preset's networks with random weights."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    pictures = 0.0
    if preset.tower:
        tower = build_tower(preset.tower, device, dtype)
        shape = (preset.tower.patches, preset.tower.width)

        def encode(batch: int) -> float:
            patches = torch.randn(batch, *shape, device=device, dtype=dtype)
            return least_seconds(lambda: tower(patches), device, count)

        if preset.every_frame:
            frame = encode(FRAME_BATCH) / FRAME_BATCH
        else:
            pictures = encode(preset.pictures)
        del tower
    if not preset.every_frame:
        net = encoder().to(device)
        frames = torch.randn(FRAME_BATCH, 3, SIZE, SIZE, device=device)
        frame = least_seconds(lambda: net(frames), device, count) / FRAME_BATCH
    model = build_language(preset.language, device, dtype)
    decoder = StaticDecoder(model, together=True)

    def step(batch: int) -> float:
        run = decoder.start([prompt(preset, model)] * batch, count + 1)
        token = torch.ones(batch, dtype=torch.long)
        return least_seconds(lambda: run.feed(token), device, count)

    ids = torch.ones(1, preset.prompt, dtype=torch.long, device=device)
    prefill = least_seconds(lambda: model(ids, logits_to_keep=1), device, count)
    return Times(frame, pictures, prefill, step(1), step(BATCH))


def prompt(preset: Preset, model: nn.Module, asked: int = 0) -> Tensor:
    """Embeddings [T, D] of a prompt; its words are other ones for another ``asked``."""
    weight = model.get_input_embeddings().weight
    visual = torch.zeros(preset.prompt - TEXT, weight.shape[1]).to(weight)
    return torch.cat([visual, weight[asked : asked + 1].expand(TEXT, -1)])


@torch.inference_mode()
def measured_switches(preset: Preset, device: str, *, count: int = 5) -> Switches:
    """Time a preset's networks without each switch and with it."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = build_language(preset.language, device, dtype)
    token = torch.ones(1, dtype=torch.long, device=device)
    usual = TransformersRun(model, prompt(preset, model))
    alone = least_seconds(lambda: usual.feed(token), device, count)
    decoder = StaticDecoder(model, together=True)
    run = decoder.start([prompt(preset, model)], count + 1)
    graph = least_seconds(lambda: run.feed(token), device, count)
    whole = least_seconds(lambda: TransformersRun(model, prompt(preset, model)), device, count)
    asked = iter(range(count + 3))

    def further() -> None:
        decoder.start([prompt(preset, model, next(asked))], 1)

    further()  # what it begins with is kept from the second prompt on
    behind = least_seconds(further, device, count)
    rows = decoder.start([prompt(preset, model, 1)], count + 1, replies=BATCH)
    rows.take(torch.zeros(BATCH, dtype=torch.long))
    together = least_seconds(lambda: rows.feed(token.repeat(BATCH)), device, count)
    if preset.every_frame and preset.tower:
        net = build_tower(preset.tower, device, dtype)
        shape = (preset.tower.patches, preset.tower.width)
        frames = torch.randn(FRAME_BATCH, *shape, device=device, dtype=dtype)
    else:
        net = encoder().to(device)
        frames = torch.randn(FRAME_BATCH, 3, SIZE, SIZE, device=device)
    one = least_seconds(lambda: net(frames[:1]), device, count)
    many = least_seconds(lambda: net(frames), device, count) / FRAME_BATCH
    return Switches(
        (alone, graph),
        (whole, behind),
        (BATCH * (whole + REPLY * alone), whole + REPLY * together),
        (one, many),
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks gpu")
    parser.add_argument("--predict", action="store_true", help="only print the predictions")
    options = parser.parse_args(arguments)
    print(tables())
    if options.predict:
        return 0
    if not torch.cuda.is_available():
        print("\nnot timed: there is no CUDA device here; all of the above is computed")
        return 0
    began = time.monotonic()
    device, memory = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    known = next((name for name in sorted(GPUS, key=len, reverse=True) if name in device), None)
    print(f"\n{device}, predicted > measured; the prediction is for {known or 'none of these'}")
    for line in measurements(known, memory):
        print(line, flush=True)
        if time.monotonic() - began > DEADLINE_S:
            print("the others are not measured: no time left")
            break
    print(f"\nin {time.monotonic() - began:.0f} s")
    return 0


def measurements(known: str | None, memory: int) -> Iterator[str]:
    """Yield the lines of three tables; of the first what a preset should do and what it does."""
    shown: tuple[Callable[[Times], str], ...] = (
        lambda times: f"{1 / times.frame:.0f}",
        lambda times: f"{1000 * times.first_word:.1f}",
        lambda times: f"{1000 * times.step:.2f}",
        lambda times: f"{times.streams}",
    )
    yield "| preset | frames a second | first word, ms | a token, ms | streams |"
    yield "|---|---|---|---|---|"
    for name, preset in PRESETS.items():
        if needed_bytes(preset) > 0.8 * memory:
            yield f"| {name} | not measured: it needs {needed_bytes(preset) / 1e9:.0f} GB |"
            continue
        pairs = [predicted(preset, known)] if known else []
        try:
            pairs.append(measured(preset, "cuda"))
        except torch.OutOfMemoryError:
            yield f"| {name} | not measured: there is no room for it |"
            continue
        finally:
            torch.cuda.empty_cache()
        cells = (" > ".join(map(show, pairs)) for show in shown)
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield f"\n{SWITCHES_HEAD}"
    for name in SWITCHED:
        if needed_bytes(PRESETS[name]) > 0.6 * memory:
            continue
        if known:
            yield shown_switches(f"{name}, predicted", predicted_switches(PRESETS[name], known))
        yield shown_switches(f"{name}, measured", measured_switches(PRESETS[name], "cuda"))
        torch.cuda.empty_cache()
    yield "\n| kernel | least µs | measured µs |\n|---|---|---|"
    bandwidth, count = GPUS[known][0] if known else 0, kernels.bytes_read()
    for name, call in kernels.calls():
        least = f"{1e6 * count[name] / bandwidth:.1f}" if bandwidth else "unknown"
        yield f"| {name} | {least} | {kernels.microseconds(call):.1f} |"


def small(preset: Preset) -> Preset:
    """A preset of the same shape that a CPU measures in a moment."""
    tower = preset.tower and Tower(1, 64, 64, 4)
    return replace(
        preset, tower=tower, language=Language(1, 64, 2, 1, 32, 64, 100), pictures=1, tokens=2
    )
