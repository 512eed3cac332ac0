"""Keys for search from a model that was trained on pictures and sentences: CLIP, SigLIP and others.

    keys = open_keys("hf:google/siglip2-base-patch16-224")
    model = with_keys(load("streammem-tiny"), keys)     # `--keys hf:...`
    model.fingerprint                                    # ends in +NAME@MARK:WIDTH

Perception, segments and captions stay the other model's. What a question must reach to count as
seen is computed from the model's own keys of unrelated pictures, see ``Calibration``.
"""

import hashlib
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from streammem.config import override
from streammem.errors import BackboneError, ConfigError
from streammem.memory.retrieval import GumbelNull, fit_null
from streammem.models.backbones.weights import home
from streammem.models.once import opening
from streammem.models.protocols import ComposedModel, StreamModel, TextEncoder
from streammem.models.tiny.questions import QuestionReading
from streammem.models.vlm.hub import local_folder
from streammem.perception.frames import BatchPerceiver, Perceived, Perceiver
from streammem.perception.scenetilling import SceneTillingConfig

log = logging.getLogger(__name__)

Encode = Callable[[Sequence[Any]], np.ndarray]
AT_ONCE = 16
BACKGROUND = 256  # pictures; some hundreds are needed for a steady tail
SIZES = (8, 32, 128)  # of the memories that chance is measured in
SAMPLE_BYTES, SAMPLE_EVERY = 1 << 16, 1 << 23
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
CALIBRATION = 1  # raised when what follows changes, since it shifts the key space
SENTENCES = tuple(
    f"{who} {does} {where}"
    for (who, does), where in product(
        (
            ("a man", "rides a bicycle"),
            ("two children", "play with a ball"),
            ("a brown dog", "runs"),
            ("a woman", "reads a book"),
            ("a cat", "sleeps"),
            ("people", "wait in a queue"),
            ("a lorry", "stands"),
            ("someone", "cooks a meal"),
        ),
        (
            "in the street", "on a beach", "in a kitchen", "at a station",
            "in the snow", "beside a river", "in an office", "at night",
        ),
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KeyOptions:
    """How keys are made.

    Attributes:
        revision: branch, tag or commit of the hub's repository; empty takes ``main``.
        pictures: folder of some hundred photos of yours, unrelated to what is watched: the scale
            of "not seen". Without it generated patterns stand in, which are easier to tell from
            what is asked for than photos are.
    """

    revision: str = ""
    pictures: str = ""


class Calibration(NamedTuple):
    """What makes a model's cosines comparable with those that "seen" was fitted to.

    Pictures and sentences lie in two far-off cones of such a key space. Subtracting each cone's
    mean brings them together: unrelated pairs are near 0 then, as in our own key space.

    Attributes:
        pictures: [D] mean of unit picture features.
        sentences: [D] mean of unit sentence features.
        background: [B, D + 1] unit keys of unrelated pictures.
        null: how far the best of many of them reaches.
    """

    pictures: np.ndarray
    sentences: np.ndarray
    background: np.ndarray
    null: GumbelNull


class Towers(NamedTuple):
    """The two halves of a model of pictures and sentences: each maps N of them to [N, D]."""

    pictures: Encode
    sentences: Encode


class PictureTextKeys:
    """Maps pictures and sentences into one key space.

    The last place of a key is 0. A row of a memory whose picture is gone has all of its key there,
    so that no question finds it by its looks.

    Args:
        name: of the model.
        towers: its halves.
        mark: a checksum of its weights and of what it was calibrated on.
        calibration: see there.
    """

    def __init__(self, name: str, towers: Towers, mark: str, calibration: Calibration) -> None:
        self._towers, self._calibration = towers, calibration
        self.background = torch.from_numpy(calibration.background)
        self.null = calibration.null
        width = self.background.shape[1]
        self.label = f"{name}@{mark}:{width}"

    def picture_keys(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Map pictures [H, W, 3] uint8 RGB to unit keys [N, K] float32."""
        return _keys(self._towers.pictures(pictures), self._calibration.pictures)

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        """Map sentences to unit keys [N, K] float32."""
        if not sentences:
            return np.empty((0, self.background.shape[1]), np.float32)
        return _keys(self._towers.sentences(sentences), self._calibration.sentences)


def open_keys(
    name_or_path: str, *, device: str = "cpu", options: Mapping[str, Any] = MappingProxyType({})
) -> PictureTextKeys:
    """Open a model of pictures and sentences. Never the network.

    Args:
        name_or_path: a folder, or a name on the hub whose files are in its cache here; ``hf:``
            before it is left out. A CLIP or SigLIP of transformers, or a multimodal model of
            sentence-transformers.
        device: where it runs.
        options: fields of ``KeyOptions``.

    Raises:
        ConfigError: options that there are not, or a folder without pictures.
        BackboneError: it is not here, cannot be opened, or maps no pictures or sentences.
    """
    name = name_or_path.removeprefix("hf:")
    said = override(KeyOptions(), options, f"{name}: ")
    folder = local_folder(name, said.revision)
    try:
        with opening(name):
            opens = _sentence_transformer if (folder / "modules.json").is_file() else _two_towers
            towers = opens(folder, device)
    except BackboneError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BackboneError(f"{name}: not a usable model of keys ({reason})") from error
    photos = _photos(said.pictures)
    mark = _mark(folder, photos)
    short = Path(name).name if Path(name).is_dir() else name
    return PictureTextKeys(short, towers, mark, _calibrated(towers, photos, short, mark))


def with_keys(model: StreamModel, keys: PictureTextKeys) -> ComposedModel:
    """Return a model that remembers and finds by other keys.

    Confidence and reranking were fitted to the model's own keys and are left out: the likeliest
    caption is taken, and its confidence is a bare cosine.
    """
    return ComposedModel(
        name=model.name,
        fingerprint=f"{model.fingerprint}+{keys.label}",
        perceiver=_KeyedPerceiver(model.perceiver, keys),
        text_encoder=_KeyedTextEncoder(model.text_encoder, keys),
        generator=model.generator,
        segment_encoder=model.segment_encoder,
        session_options=model.session_options,
        answer_generator=model.answer_generator,
    )


@dataclass(frozen=True, eq=False)
class _KeyedPerceiver:
    inner: Perceiver
    keys: PictureTextKeys

    @property
    def scenes(self) -> SceneTillingConfig:
        return self.inner.scenes

    def perceive(self, picture: np.ndarray) -> Perceived:
        return self.inner.perceive(picture)._replace(key=self.keys.picture_keys([picture])[0])

    @property
    def most_together(self) -> int:
        return self.inner.most_together if isinstance(self.inner, BatchPerceiver) else 1

    def perceive_many(self, pictures: Sequence[np.ndarray]) -> list[Perceived]:
        if not isinstance(self.inner, BatchPerceiver):
            return [self.perceive(picture) for picture in pictures]
        seen, keys = self.inner.perceive_many(pictures), self.keys.picture_keys(pictures)
        return [each._replace(key=key) for each, key in zip(seen, keys, strict=True)]


@dataclass(frozen=True, eq=False)
class _KeyedTextEncoder:
    inner: TextEncoder
    keys: PictureTextKeys

    @property
    def background(self) -> Tensor:
        return self.keys.background

    @property
    def null(self) -> GumbelNull:
        return self.keys.null

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        return self.keys.sentence_keys(sentences)

    def sentence_meanings(self, sentences: Sequence[str]) -> np.ndarray:
        return self.inner.sentence_meanings(sentences)

    def name_readout(self, description: str) -> None:
        """Return nothing: the inner encoder reads names off other keys."""

    def read_question(self, question: str) -> QuestionReading:
        return self.inner.read_question(question)


# -- models --


def _two_towers(folder: Path, device: str) -> Towers:
    """Open a model of transformers with ``get_image_features`` and ``get_text_features``."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model: Any = AutoModel.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        dtype=torch.float32 if device == "cpu" else torch.bfloat16,
    )
    try:
        _ = model.get_image_features, model.get_text_features
    except AttributeError:
        kind = model.config.model_type
        raise BackboneError(
            f"{folder}: a {kind} maps no pictures and sentences to one space"
        ) from None
    model = model.to(device).eval().requires_grad_(False)
    # Through Pillow wherever this runs, so that a key does not depend on torchvision.
    shrink: Any = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    limit = min(model.config.text_config.max_position_embeddings, tokenizer.model_max_length)
    # SigLIP was trained on padding up to its limit, and sees it.
    padded = model.config.model_type.startswith("siglip")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def features(found: Any) -> np.ndarray:
        vectors: Tensor = getattr(found, "pooler_output", found)
        return vectors.float().cpu().numpy()

    @torch.inference_mode()
    def pictures(shown: Sequence[np.ndarray]) -> np.ndarray:
        read = shrink([Image.fromarray(each) for each in shown], return_tensors="pt")
        return features(model.get_image_features(**read.to(device, dtype=model.dtype)))

    @torch.inference_mode()
    def sentences(texts: Sequence[str]) -> np.ndarray:
        read = tokenizer(
            list(texts),
            padding="max_length" if padded else True,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        ).to(device)
        given = ("input_ids",) if padded else ("input_ids", "attention_mask")
        return features(model.get_text_features(**{key: read[key] for key in given}))

    return Towers(pictures, sentences)


def _sentence_transformer(folder: Path, device: str) -> Towers:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise BackboneError(
            f"{folder}: is a model of sentence-transformers; "
            "pip install 'sentence-transformers[image]>=5.4'"
        ) from error
    model = SentenceTransformer(str(folder), device=device, local_files_only=True)

    def pictures(shown: Sequence[np.ndarray]) -> np.ndarray:
        read = [Image.fromarray(each) for each in shown]
        return np.asarray(model.encode(read, convert_to_numpy=True), np.float32)

    def sentences(texts: Sequence[str]) -> np.ndarray:
        return np.asarray(model.encode(list(texts), convert_to_numpy=True), np.float32)

    return Towers(pictures, sentences)


def _mark(folder: Path, photos: Sequence[Path]) -> str:
    """Return a checksum of a model's files and of what it is calibrated on.

    Of weights their size and every 8 MB a sample: reading gigabytes would take as long as opening.
    """
    digest = hashlib.sha256(f"{CALIBRATION} {len(photos)}".encode())
    weights = sorted(folder.rglob("*.safetensors"))
    for path in [*sorted(folder.rglob("*config.json")), *weights, *photos]:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for at in range(0, size, SAMPLE_EVERY):
                file.seek(at)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:8]


# -- calibration --


def _keys(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return unit keys [N, D + 1] of features [N, D]; the last place is 0."""
    centred = _unit(_unit(features) - mean)
    return np.pad(centred, ((0, 0), (0, 1))).astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _calibrated(towers: Towers, photos: Sequence[Path], name: str, mark: str) -> Calibration:
    """Measure a model once; what was measured is kept beside our other weights."""
    kept = home() / "keys" / f"{name.replace('/', '--')}-{mark}.npz"
    try:
        with np.load(kept) as found:
            null = GumbelNull(*map(float, found["null"]))
            return Calibration(found["pictures"], found["sentences"], found["background"], null)
    except (OSError, ValueError, KeyError, BadZipFile):  # not there, or cut off
        log.info("%s: measuring its keys of %d pictures, once", name, BACKGROUND)
    # 1. The mean of either kind.
    shown = [_read(path) for path in photos] if photos else generated_pictures()
    parts = [shown[n : n + AT_ONCE] for n in range(0, len(shown), AT_ONCE)]
    seen = np.concatenate([towers.pictures(part) for part in parts])
    texts = towers.sentences(SENTENCES)
    means = [_unit(each).mean(0) for each in (seen, texts)]
    # 2. How far the best of n pictures reaches which none of the sentences is about.
    keys, asked = _keys(seen, means[0]), _keys(texts, means[1])
    half = len(keys) // 2
    others = asked @ keys[half:].T
    sizes = sorted({size for size in SIZES if size < half} | {half // 2, half})
    absent = [(n, (asked @ keys[:n].T).max(1), others) for n in sizes]
    null = fit_null(absent)
    found = Calibration(means[0], means[1], keys, null)
    _keep(kept, found)
    return found


def _keep(path: Path, found: Calibration) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(content, **{**found._asdict(), "null": np.array(found.null)})
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(content.getvalue())
        partial.replace(path)
    except OSError as error:
        log.warning("%s: cannot be kept (%s); it is measured again next time", path, error)


def _photos(folder: str) -> list[Path]:
    """Return the photos to calibrate on, at most ``BACKGROUND``, by their names."""
    if not folder:
        return []
    found = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in PICTURES)
    if len(found) < 2 * SIZES[0]:
        raise ConfigError(f"pictures={folder}: {len(found)} pictures; give a hundred or more")
    return found[:BACKGROUND]


def _read(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise ConfigError(f"{path}: not a picture ({error})") from error


def generated_pictures(count: int = BACKGROUND) -> list[np.ndarray]:
    """Make pictures of soft patches of colour, coarse and fine; equal at every call."""
    draw = np.random.default_rng(0)
    made = []
    for number in range(count):
        cells = 2 + number % 15
        coarse = draw.integers(0, 256, (cells, cells, 3), np.uint8)
        fine = draw.integers(0, 256, (8 * cells, 8 * cells, 3), np.uint8)
        share = (number % 5) / 8
        side = (224, 224)
        one, other = (
            np.asarray(Image.fromarray(each).resize(side, Image.Resampling.BICUBIC), np.float32)
            for each in (coarse, fine)
        )
        made.append(((1 - share) * one + share * other).round().clip(0, 255).astype(np.uint8))
    return made
