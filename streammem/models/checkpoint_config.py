"""What a checkpoint's config.json says, checked: sizes, backbones' names, and what was fitted."""

import json
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any, TypeVar, get_type_hints

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
MAX_NAME = 1024  # characters of a backbone's name, which may be a path
# Bounds of what a file that came from anywhere may ask for.
MAX_NUMBER = 1e9
MAX_SIZE = 1 << 16
MAX_LAYERS = 64
Made = TypeVar("Made")


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
    """Read and check a checkpoint folder's config.json.

    Raises:
        CheckpointError: it is missing or malformed, or a setting is missing, of another type or
            out of its range; the message names the setting.
    """
    path = folder / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path}: too large for a configuration")
        config = _table(json.loads(path.read_text()), "config")
        if config["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: format {shown(config['format'])}, this version reads {FORMAT}; "
                "update streammem"
            )
        bridge = _bridge(config["bridge"])
        return CheckpointConfig(
            vision=_name(config, "vision"),
            language=_name(config, "language"),
            sentences=_name(config, "sentences"),
            bridge=bridge,
            key_dim=_whole(config["key_dim"], "key_dim", 2, MAX_SIZE),
            scenes=_record(SceneTillingConfig, config["scenes"], "scenes", (0, MAX_NUMBER)),
            lora_scale=_number(config["lora_scale"], "lora_scale"),
            confidence_model=_certainty(config.get("certainty")),
            reranker=_choice(config.get("choice")),
            null=_chance(config.get("chance")),
            evidence=_evidence(config.get("evidence"), bridge),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: not a streammem configuration ({reason})") from error


def _bridge(said: Any) -> BridgeConfig:
    bridge = _record(BridgeConfig, said, "bridge")
    _whole(bridge.layers, "bridge.layers", 1, MAX_LAYERS)
    if bridge.dim % bridge.heads:
        raise ValueError(f"bridge.heads: {bridge.heads} do not divide bridge.dim, {bridge.dim}")
    if not 0 <= bridge.dropout < 1:
        raise ValueError(f"bridge.dropout: {bridge.dropout} is not in [0, 1)")
    if bridge.language_norm <= 0:
        raise ValueError(f"bridge.language_norm: {bridge.language_norm} is not above 0")
    return bridge


def _certainty(said: Any) -> ConfidenceModel | None:
    if said is None:
        return None
    nouns = _table(said, "certainty").get("nouns")
    return ConfidenceModel(
        *_logistic(said, "certainty", CONFIDENCE_FEATURES, WHOLE),
        None
        if nouns is None
        else NounModel(*_logistic(nouns, "certainty.nouns", NOUN_FEATURES, WHOLE_BY_NOUNS)),
    )


def _logistic(
    said: Any, name: str, features: int, default: float
) -> tuple[tuple[float, ...], float, float, float]:
    """Read weights, bias, least and whole of a fit of confidence."""
    said = _table(said, name)
    return (
        _weights(said, name, features),
        _number(said["bias"], f"{name}.bias"),
        _number(said.get("least", LEAST), f"{name}.least", least=0, most=1),
        _number(said.get("whole", default), f"{name}.whole", least=0, most=1),
    )


def _choice(said: Any) -> Reranker | None:
    if said is None:
        return None
    said = _table(said, "choice")
    return Reranker(
        _weights(said, "choice", RERANKING_FEATURES),
        _whole(said["candidates"], "choice.candidates", 1, MOST_BEAMS),
        _number(said.get("naming", 0.0), "choice.naming"),
    )


def _chance(said: Any) -> GumbelNull:
    if said is None:
        return DEFAULT_NULL
    chance = _record(GumbelNull, said, "chance")
    if chance.scale <= 0:
        raise ValueError(f"chance.scale: {chance.scale} is not above 0")
    return chance


def _evidence(said: Any, bridge: BridgeConfig) -> EvidenceSizes | None:
    if said is None:
        return None
    sizes = _record(EvidenceSizes, said, "evidence")
    _whole(sizes.cell_dim, "evidence.cell_dim", 1, bridge.patch_dim)  # the first of a patch
    return sizes


def _record(
    kind: type[Made], said: Any, name: str, within: tuple[float, float] = (1, MAX_SIZE)
) -> Made:
    """Make a record of numbers; ``within`` is the range of those that its type has whole."""
    said, types = _table(said, name), get_type_hints(kind)
    if unknown := said.keys() - types.keys():
        raise ValueError(f"{name}: no setting {shown(min(unknown))}")
    values = {}
    for key, value in said.items():
        path = f"{name}.{key}"
        values[key] = _whole(value, path, *within) if types[key] is int else _number(value, path)
    return kind(**values)


def _weights(said: dict[str, Any], name: str, count: int) -> tuple[float, ...]:
    weights = said["weights"]
    if not isinstance(weights, list) or len(weights) != count:
        raise ValueError(f"{name}.weights: {shown(weights)} is no list of {count} numbers")
    return tuple(_number(weight, f"{name}.weights") for weight in weights)


def _name(config: dict[str, Any], key: str) -> str:
    value = config[key]
    if not isinstance(value, str):
        raise TypeError(f"{key}: {shown(value)} is no str")
    if not (0 < len(value) <= MAX_NAME and value.isprintable()):
        raise ValueError(f"{key}: {shown(value)} is no name of a backbone")
    return value


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name}: {shown(value)} is no table")
    return value


def _whole(value: Any, name: str, least: float, most: float) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: {shown(value)} is no int")
    return int(_number(value, name, least, most))


def _number(value: Any, name: str, least: float = -MAX_NUMBER, most: float = MAX_NUMBER) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: {shown(value)} is no number")
    if not least <= value <= most:  # nor is NaN
        raise ValueError(f"{name}: {shown(value)} is not in [{least:.10g}, {most:.10g}]")
    return float(value)
