"""What a checkpoint's config.json says, checked: sizes, backbones' names, and what was fitted."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streammem.errors import CheckpointError
from streammem.memory.retrieval import DEFAULT_NULL, GumbelNull
from streammem.models.backbones.sampling import MOST_BEAMS
from streammem.models.caption_scores import (
    CONFIDENCE_FEATURES,
    LEAST,
    NOUN_FEATURES,
    RERANKING_FEATURES,
    WHOLE,
    WHOLE_BY_NOUNS,
    ConfidenceModel,
    NounModel,
    Reranker,
)
from streammem.models.tiny.bridge import BridgeConfig
from streammem.models.tiny.keys import EvidenceSizes
from streammem.perception.scenetilling import SceneTillingConfig

FORMAT = 1
MAX_CONFIG_BYTES = 1 << 20
MAX_EVIDENCE = 1 << 16


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """What config.json says.

    Attributes:
        vision: name of the frame encoder, likewise ``language`` and ``sentences``.
        key_dim: width of the keys.
        lora_scale: alpha / r of the adapters in the checkpoint.
        confidence_model: see ``VideoModel``; likewise ``reranker`` and ``null``.
        evidence: of words, that is joined to the keys; None without.
    """

    vision: str
    language: str
    sentences: str
    bridge: BridgeConfig
    key_dim: int
    scenes: SceneTillingConfig
    lora_scale: float
    confidence_model: ConfidenceModel | None = None
    reranker: Reranker | None = None
    null: GumbelNull = DEFAULT_NULL
    evidence: EvidenceSizes | None = None


def read_config(folder: Path) -> CheckpointConfig:
    """Read and check a checkpoint folder's config.json."""
    path = folder / "config.json"
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path}: too large for a configuration")
    try:
        config = json.loads(path.read_text())
        if config["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: format {config['format']}, this version reads {FORMAT}; update streammem"
            )
        return CheckpointConfig(
            vision=_typed(config["vision"], str),
            language=_typed(config["language"], str),
            sentences=_typed(config["sentences"], str),
            bridge=BridgeConfig(**config["bridge"]),
            key_dim=_typed(config["key_dim"], int),
            scenes=SceneTillingConfig(**config["scenes"]),
            lora_scale=float(config["lora_scale"]),
            confidence_model=_certainty(config.get("certainty")),
            reranker=_choice(config.get("choice")),
            null=_chance(config.get("chance")),
            evidence=_evidence(config.get("evidence")),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: not a streammem configuration ({reason})") from error


def _certainty(said: Any) -> ConfidenceModel | None:
    if said is None:
        return None
    nouns = said.get("nouns")
    return ConfidenceModel(
        *_logistic(said, CONFIDENCE_FEATURES, WHOLE),
        None if nouns is None else NounModel(*_logistic(nouns, NOUN_FEATURES, WHOLE_BY_NOUNS)),
    )


def _logistic(
    said: Any, features: int, default: float
) -> tuple[tuple[float, ...], float, float, float]:
    """Read weights, bias, least and whole of a fit of confidence."""
    weights = tuple(map(float, said["weights"]))
    if len(weights) != features or not np.isfinite([*weights, said["bias"]]).all():
        raise ValueError(f"certainty needs {features} weights and a bias, all finite")
    least, whole = float(said.get("least", LEAST)), float(said.get("whole", default))
    if not (0 <= least <= 1 and 0 <= whole <= 1):
        raise ValueError("certainty: least and whole are probabilities")
    return weights, float(said["bias"]), least, whole


def _choice(said: Any) -> Reranker | None:
    if said is None:
        return None
    weights, candidates = tuple(map(float, said["weights"])), _typed(said["candidates"], int)
    naming = float(said.get("naming", 0.0))
    if len(weights) != RERANKING_FEATURES or not np.isfinite([*weights, naming]).all():
        raise ValueError(f"choice needs {RERANKING_FEATURES} weights and naming, all finite")
    if not 1 <= candidates <= MOST_BEAMS:
        raise ValueError(f"choice: candidates are 1 to {MOST_BEAMS}, not {candidates}")
    return Reranker(weights, candidates, naming)


def _chance(said: Any) -> GumbelNull:
    if said is None:
        return DEFAULT_NULL
    chance = GumbelNull(**{name: float(value) for name, value in said.items()})
    if not np.isfinite(chance).all() or chance.scale <= 0:
        raise ValueError("chance needs finite numbers, and a scale above 0")
    return chance


def _evidence(said: Any) -> EvidenceSizes | None:
    if said is None:
        return None
    sizes = EvidenceSizes(**{name: _typed(size, int) for name, size in said.items()})
    if not all(0 < size <= MAX_EVIDENCE for size in sizes):
        raise ValueError(f"evidence: sizes are 1 to {MAX_EVIDENCE}, not {tuple(sizes)}")
    return sizes


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
