"""Recipes of training runs: data, sizes and stages, read from TOML and fully checked.

    recipe = read_recipe(Path("configs/train/streammem-tiny.toml"))
    recipe.stages[0].kind  # 'vision'

No data is opened here.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streammem.config import override, read_toml
from streammem.errors import ConfigError

STAGE_KINDS = (
    "vision", "words", "keys", "evidence", "captions", "prefix", "text", "reward",
    "things", "answers", "self-training", "operators",
)  # fmt: skip
BEFORE_SELF_TRAINING = ("things", "operators")  # they leave bridge, keys and LoRA as they are
REQUIRED = ("kind", "steps", "lr", "batch")
GENERATED = "generated:"
TABLE = re.compile(r"(.+\.csv)(?::(.+))?")


@dataclass(frozen=True, slots=True)
class BackboneNames:
    """Names of the frozen models, as in a checkpoint: a preset, a folder, or ``hf:NAME``."""

    vision: str = "efficientnet-lite2"
    language: str = "smollm2-135m-instruct"
    sentences: str = "all-minilm-l6-v2"


@dataclass(frozen=True, slots=True)
class BridgeSizes:
    """Sizes of the bridge that a recipe can set (see ``BridgeConfig``)."""

    dim: int = 384
    memory_tokens: int = 16
    layers: int = 3
    heads: int = 6
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.dim, self.memory_tokens, self.layers, self.heads) < 1:
            raise ConfigError("bridge: dim, memory_tokens, layers and heads must be at least 1")
        if self.dim % self.heads:
            raise ConfigError(f"bridge: dim {self.dim} is not a multiple of heads {self.heads}")
        _check_share("bridge: dropout", self.dropout)


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """The low-rank adapter of the language model.

    Attributes:
        rank: r.
        alpha: the adapter's product is scaled by alpha / r.
        dropout: on its input, in [0, 1).
        targets: suffixes of the names of the linear layers to adapt.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj")

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets:
            raise ConfigError("lora: needs rank >= 1 and at least one of targets")
        _check_share("lora: dropout", self.dropout)

    @property
    def scale(self) -> float:
        """The factor on B A."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class StageOptions:
    """One stage.

    Attributes:
        kind: one of ``STAGE_KINDS``.
        steps: optimiser steps.
        lr: peak learning rate.
        batch: pictures a step; of ``operators``, questions; of ``answers``, prompts; of ``text``,
            captions; of ``evidence``, pictures and as many of their captions, and three times as
            many sentences without pictures if there are any.
        name: of its files; the kind unless two stages are of one kind.
        warmup: steps of linear warm-up.
        weight_decay: on matrices.
        evaluate_every: steps between evaluations; 0 evaluates at the end only.
        photos: of ``text``, the share of the captions that are pictures' own, in (0, 1).
        answers: of ``self-training``, prompts with questions beside the captions of every step, as
            ``answers`` asks them; 0 learns captions alone.
    """

    kind: str
    steps: int
    lr: float
    batch: int
    name: str = ""
    warmup: int = 20
    weight_decay: float = 0.01
    evaluate_every: int = 0
    photos: float = 0.4
    answers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in STAGE_KINDS:
            raise ConfigError(f"kind {self.kind!r}: no such stage; known: {', '.join(STAGE_KINDS)}")
        if min(self.steps, self.batch) < 1 or self.lr <= 0:
            raise ConfigError(f"{self.kind}: steps and batch must be at least 1, lr above 0")
        if min(self.warmup, self.evaluate_every, self.weight_decay, self.answers) < 0:
            raise ConfigError(
                f"{self.kind}: warmup, evaluate_every, weight_decay, answers must be >= 0"
            )
        if self.answers and self.kind != "self-training":
            raise ConfigError(f"{self.kind}: answers={self.answers}: for self-training only")
        if not 0 < self.photos < 1:
            raise ConfigError(f"{self.kind}: photos={self.photos}: give a share in (0, 1)")
        if not self.label.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"name {self.name!r}: letters, digits, - and _ only; it names files")

    @property
    def label(self) -> str:
        """Name of the stage's files."""
        return self.name or self.kind


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole training run.

    Attributes:
        name: of the model.
        data: captioned-picture folders and conversation files, absolute or relative to
            ``$STREAMMEM_DATA``; ``generated:N`` makes N pictures of coloured shapes, and sentences.
            Sentences without pictures: ``FILE.txt``, one a line, or a column, ``FILE.csv:COLUMN``.
        stages: in order.
        validation: those of ``data`` whose validation pictures are measured; all by default.
        seed: of everything drawn.
        crops: random crops of each training picture beside the whole and its mirror image.
        key_dim: K, width of the key space.
        features: folder of cached features, which runs may share; ``features`` in the output by
            default.
        backbones: names of the frozen models.
        bridge: sizes.
        lora: of the caption stages.
    """

    name: str
    data: tuple[str, ...]
    stages: tuple[StageOptions, ...]
    validation: tuple[str, ...] = ()
    seed: int = 0
    crops: int = 2
    key_dim: int = 256
    features: str = ""
    backbones: BackboneNames = field(default_factory=BackboneNames)
    bridge: BridgeSizes = field(default_factory=BridgeSizes)
    lora: LoraOptions = field(default_factory=LoraOptions)

    def __post_init__(self) -> None:
        if not all(isinstance(entry, str) for entry in (*self.data, *self.validation)):
            raise ConfigError("data and validation list names of folders, as strings")
        if not self.data or not self.stages:
            raise ConfigError("a recipe needs data and at least one of [[stages]]")
        _check_unique("data", [Path(entry).stem for entry in self.data])
        if not self.pictures:
            raise ConfigError("data: lists sentences only; a recipe needs pictures too")
        if any(stage.kind == "vision" for stage in self.stages[1:]):
            raise ConfigError("stages: vision must come first; what follows learns on its features")
        _check_unique("stages", [stage.label for stage in self.stages])
        kinds = [stage.kind for stage in self.stages]
        if "text" in kinds and "prefix" not in kinds[: kinds.index("text")]:
            raise ConfigError(
                "stages: text learns on what prefix has learned; put prefix before it"
            )
        for place, kind in enumerate(kinds):
            if kind == "self-training" and set(kinds[:place]) - set(BEFORE_SELF_TRAINING):
                raise ConfigError(
                    "stages: self-training draws with the model of --init; before it come "
                    f"{' and '.join(BEFORE_SELF_TRAINING)} only; train others in a run before, "
                    "and start another: --init run/checkpoint"
                )
        if unknown := set(self.validation) - set(self.pictures):
            unlisted = ", ".join(sorted(unknown))
            raise ConfigError(f"validation: {unlisted}: not listed under data, or no pictures")
        if min(self.seed, self.crops) < 0 or self.key_dim < 1:
            raise ConfigError("seed and crops must be >= 0, key_dim at least 1")

    @property
    def pictures(self) -> tuple[str, ...]:
        """Those of ``data`` that hold pictures."""
        return tuple(entry for entry in self.data if text_file(entry) is None)

    def continues(self, earlier: "Recipe") -> bool:
        """Return whether this recipe only adds stages to ``earlier``."""
        stages = self.stages[: len(earlier.stages)]
        same = replace(self, stages=stages, name=earlier.name, features=earlier.features)
        return same == earlier


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: unreadable, an unknown or missing option, or an invalid value.
    """
    return parse_recipe(read_toml(path), f"{path}: ")


def parse_recipe(tables: Mapping[str, Any], where: str) -> Recipe:
    """Build a recipe from TOML's tables; ``where`` begins its error messages."""
    values = {key: _tuples(value) for key, value in tables.items() if key != "stages"}
    listed = tables.get("stages")
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{where}stages: give at least one [[stages]] table")
    if "data" not in values:
        raise ConfigError(f"{where}data: missing; list captioned-picture folders")
    stages = tuple(_stage(table, f"{where}stages[{i}].") for i, table in enumerate(listed))
    try:
        return override(replace(Recipe("streammem", ("-",), stages)), values, where)
    except ConfigError as error:
        raise error if str(error).startswith(where) else ConfigError(f"{where}{error}") from error


def resolve_data(place: str) -> Path:
    """Find a data folder or file of a recipe.

    Raises:
        ConfigError: a relative path while ``$STREAMMEM_DATA`` is not set.
    """
    path = Path(place).expanduser()
    if path.is_absolute():
        return path
    root = os.environ.get("STREAMMEM_DATA")
    if not root:
        raise ConfigError(
            f"data {place}: is relative to $STREAMMEM_DATA, which is not set; "
            "set it to the folder of your data, or give an absolute path"
        )
    return Path(root) / path


def text_file(entry: str) -> tuple[str, str] | None:
    """Split an entry of ``data`` into a file of sentences and a column; None for any other entry.

    Raises:
        ConfigError: a table without the name of a column.
    """
    if entry.endswith(".txt"):
        return entry, ""
    found = TABLE.fullmatch(entry)
    if found and not found[2]:
        raise ConfigError(f"data {entry}: name the column of sentences, as in {entry}:narration")
    return (found[1], found[2]) if found else None


def _stage(table: Any, where: str) -> StageOptions:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table")
    if missing := [key for key in REQUIRED if key not in table]:
        raise ConfigError(f"{where}{missing[0]}: missing; a stage needs {', '.join(REQUIRED)}")
    try:
        return override(StageOptions(kind=STAGE_KINDS[0], steps=1, lr=1.0, batch=1), table, where)
    except ConfigError as error:
        raise error if str(error).startswith(where) else ConfigError(f"{where}{error}") from error


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _check_share(what: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{what} must be in [0, 1), not {value}")


def _check_unique(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{what}: two are called {name}, and their files would be one")
