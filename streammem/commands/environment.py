"""What this installation consists of: versions, threads, weights, and the variables it reads."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from streammem import __version__
from streammem.captioning.scheduler import LIVE_CAPTION_S
from streammem.captioning.shared_tilling import LEAST_STREAMS
from streammem.errors import BackboneError, ConfigError
from streammem.memory.index import LEAST_ON_GPU, index_choice
from streammem.models.backbones.language import DECODING_VARIABLE, DECODINGS, decoding_route
from streammem.models.backbones.products import why_rows_are_apart
from streammem.models.backbones.transformers_files import attention_choice
from streammem.models.backbones.weights import SOURCES, home, is_pulled
from streammem.models.threads import cores
from streammem.models.tiny.model import FRAMES_TOGETHER

PACKAGES = (
    "torch",
    "openvino",
    "transformers",
    "faiss-cpu",
    "av",
    "numpy",
    "decord2",
    "flash-attn",
    "triton",
)
VARIABLES = {
    "STREAMMEM_HOME": "folder of pulled weights",
    "STREAMMEM_DATA": "folder of training and test data",
    "STREAMMEM_KERNELS": "auto, triton or torch: which form of the kernels runs",
    DECODING_VARIABLE: f"{', '.join(DECODINGS)}: how language models of ours are decoded",
    "STREAMMEM_TOKEN": "what clients of `streammem serve` must present; its value is not shown",
    "STREAMMEM_API_KEY": "what model servers are shown; its value is not shown",
    "STREAMMEM_SPEECH_API_KEY": "what transcription servers are shown instead, where it is set",
    "STREAMMEM_MQTT_PASSWORD": "of the user that --mqtt names; its value is not shown",
}


def describe() -> dict[str, str]:
    """Return facts by name, in reading order."""
    facts = {"streammem": __version__, "python": platform.python_version()}
    facts |= {name: _version(name) for name in PACKAGES}
    facts["processor"] = _processor()
    facts["instructions"] = f"{torch.backends.cpu.get_cpu_capability()}, as torch uses them"
    facts["cores"] = str(cores())
    share = max(1, cores() // 2)
    facts["threads"] = (
        f"{share} for perception (in the caller's thread), {share} for the language model (in a "
        "thread of its own while a source is watched), 1 for the index"
    )
    encoder = "openvino" if find_spec("openvino") else "torch"
    facts["encoder"] = f"{encoder}, float32; on CUDA torch, up to {FRAMES_TOGETHER} frames together"
    facts["decoding"] = _decoding()
    together, reason = why_rows_are_apart()
    facts["scenes that wait"] = f"described {'together' if together else 'one by one'}: {reason}"
    facts["live captions"] = (
        "the best of as many candidates, by default 8, 4, 2 or 1, as take at most "
        f"{LIVE_CAPTION_S:g} s here, measured when a source is opened; of files always 8"
    )
    attention, reason = attention_choice()
    facts["attention"] = f"{attention}: {reason}; where a model's options do not name one"
    facts["float32 on CUDA"] = "products in full, convolutions as TF32, as torch has it"
    facts["kernels"] = _kernels()
    facts["index"] = _index()
    try:
        facts["home"] = str(home())
        for name in SOURCES:
            facts[f"weights {name}"] = "ready" if is_pulled(name) else "not pulled"
    except BackboneError as error:
        facts["weights"] = str(error)
    for name, about in VARIABLES.items():
        secret = name.endswith(("TOKEN", "PASSWORD", "KEY")) and name in os.environ
        shown = "set" if secret else os.environ.get(name)
        facts[name] = shown or f"not set ({about})"
    return facts


def _decoding() -> str:
    stated = os.environ.get(DECODING_VARIABLE) or "auto"
    try:
        route = decoding_route(stated)
    except ConfigError as error:
        return str(error)
    if stated == "static":
        return "static caches, on CUDA with graphs"
    on_cuda = "static caches with graphs" if stated == "auto" else "transformers"
    return f"{route} on the CPU, for a plain Llama; on CUDA {on_cuda}; else transformers"


def _kernels() -> str:
    try:
        from streammem_kernels import ops
    except ImportError:
        return "not in this installation: install streammem again"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds: dict[tuple[str, str], list[str]] = {}
    try:
        for name in ops.KERNELS:
            kinds.setdefault(ops.choose(name, device), []).append(name)
    except ops.KernelError as error:
        return str(error)
    rows = [f"{', '.join(names)} {form}: {reason}" for (form, reason), names in kinds.items()]
    if any(form == "triton" for form, _ in kinds):
        rows.append(
            f"find_topk from {LEAST_ON_GPU:,} keys of a kind, tilling_step from {LEAST_STREAMS} "
            "open streams, or where Triton is forced"
        )
    return "; ".join(rows)


def _index() -> str:
    try:
        (few, _), (many, why_many) = index_choice(1), index_choice(LEAST_ON_GPU)
    except ConfigError as error:
        return str(error)
    if few == many:
        return f"{few}: {why_many}"
    return f"{few} up to {LEAST_ON_GPU:,} keys of a kind, above them {many}: {why_many}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
