"""A whole training run: features, stages in order, a checkpoint, figures, curves.

What a stage learns stands in its own module; how a model is put together, in ``checkpoint.py``.
"""

import json
import tomllib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streammem.backbones.vision import VisionEncoder
from streammem.checkpoint import save
from streammem.errors import ConfigError, DatasetError
from streammem.memory.keys import PictureKey
from streammem.model import VideoModel
from streammem.questions import QuestionHead
from streammem.scenetilling import SceneTillingConfig
from streammem.training.captions import CaptionStage
from streammem.training.curves import check_matplotlib, draw_curves
from streammem.training.features import (
    CachedFeatures,
    cache_features,
    embed_captions,
    patch_statistics,
)
from streammem.training.generated import make_pictures
from streammem.training.keys import Embedded, KeyStage
from streammem.training.learner import Backbones, Learner, open_by_name
from streammem.training.loop import Schedule, Stage, read_log, train
from streammem.training.lora import check_peft
from streammem.training.memory import MemoryStage
from streammem.training.operators import OperatorStage
from streammem.training.pictures import PictureSet
from streammem.training.recipe import (
    GENERATED,
    Recipe,
    StageOptions,
    parse_recipe,
    read_recipe,
    resolve,
)
from streammem.training.records import TRAIN, VALIDATION, Source, read_source
from streammem.training.reward import RewardStage
from streammem.training.vision import EarlyEncoder, VisionStage
from streammem.training.words import WordSpace, WordStage

BACKGROUND = 512  # pictures whose keys are the scale of "not seen"
CHECKPOINT = "checkpoint"


def run(
    recipe_path: Path,
    out: Path,
    *,
    init: Path | str | None = None,
    backbones: Backbones | None = None,
) -> dict[str, Any]:
    """Train a model by a recipe, or go on where a killed run of it stopped.

    Args:
        recipe_path: TOML; see ``Recipe``.
        out: folder of this run; gets ``checkpoint/`` (a model for ``load``), ``figures.json``,
            ``loss.png``, and what a resumed run needs: ``run.json``, each stage's weights and log,
            and the features, unless the recipe puts these elsewhere.
        init: a checkpoint folder or preset to start from; None starts afresh.
        backbones: opened models in place of those that the recipe names.

    Returns:
        What ``figures.json`` holds: data, parameters, and each stage's steps, seconds and figures.

    Raises:
        ConfigError: a recipe that cannot be meant, or an output folder of another run.
        DatasetError: data that are missing or malformed.
        BackboneError: weights or packages that are missing.
        CheckpointError: ``init`` or interim weights that do not fit the recipe.
    """
    recipe = read_recipe(recipe_path)
    check_matplotlib()
    if any(stage.kind in ("captions", "reward") for stage in recipe.stages):
        check_peft()
    sources = _sources(recipe, out)
    _claim(out, recipe, recipe_path.read_text(), init)
    learner = Learner.open(recipe, backbones or open_by_name(recipe.backbones), init)
    workshop = Workshop(recipe, out, learner, sources)
    for options in recipe.stages:
        stage = STAGES[options.kind](workshop, options)
        stage.name = options.label
        train(stage, _schedule(options, recipe.seed), out, recipe=recipe_path.read_text())
        if isinstance(stage, VisionStage):
            learner.retune(stage.tuned())
    _save(workshop, out / CHECKPOINT)
    draw_curves([options.label for options in recipe.stages], out)
    figures = _figures(workshop)
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


class Workshop:
    """What the stages of one run share.

    Args:
        recipe: of the run.
        out: its folder.
        learner: what is trained.
        sources: records of the recipe's ``data``, by its entries.
    """

    def __init__(
        self, recipe: Recipe, out: Path, learner: Learner, sources: dict[str, Source]
    ) -> None:
        self.recipe, self.out, self.learner, self._sources = recipe, out, learner, sources
        self.features_folder = Path(recipe.features) if recipe.features else out / "features"

    @cached_property
    def features(self) -> dict[str, CachedFeatures]:
        return self.cached(self.learner.vision, self.features_folder)

    def cached(self, encoder: VisionEncoder, folder: Path) -> dict[str, CachedFeatures]:
        """Open, or make, what an encoder sees of every source."""
        return {
            entry: cache_features(source, encoder, folder, crops=self.recipe.crops)
            for entry, source in self._sources.items()
        }

    @cached_property
    def pictures(self) -> PictureSet:
        """The training pictures."""
        pictures = _joined([cached.split(TRAIN) for cached in self.features.values()], "training")
        self.learner.measure(patch_statistics(pictures, self.recipe.seed))
        return pictures

    @cached_property
    def validation(self) -> PictureSet:
        """The captioned validation pictures that figures are measured on."""
        return self.validation_of(self.features)

    def validation_of(self, features: dict[str, CachedFeatures]) -> PictureSet:
        """Select the captioned validation pictures of the entries that are measured."""
        entries = self.recipe.validation or self.recipe.data
        sets = [features[entry].split(VALIDATION).captioned() for entry in entries]
        return _joined(sets, "captioned validation")

    @cached_property
    def captioned(self) -> PictureSet:
        """The training pictures that have captions."""
        return _joined([self.pictures.captioned()], "captioned training")

    @cached_property
    def words(self) -> WordSpace:
        return WordSpace(self.captioned.captions, self.learner.language)

    def told(self, split: str) -> list[str]:
        """List what people wrote of the pictures of a split."""
        records = [record for source in self._sources.values() for record in source.records]
        return [caption for r in records if r.split == split for caption in r.captions]

    def embedded(self, pictures: PictureSet) -> Embedded:
        """Add the sentence embeddings of every picture's captions."""
        name = self.recipe.backbones.sentences
        open_sentences = self.learner.backbones.sentences
        folder = self.features_folder
        return Embedded(pictures, embed_captions(pictures.captions, open_sentences, name, folder))

    def center(self) -> Tensor:
        """Return the mean frame embedding of the training pictures, [D]."""
        frames = np.concatenate([cached.training_frames() for cached in self.features.values()])
        return torch.from_numpy(frames.mean(0))

    @torch.no_grad()
    def background(self) -> Tensor:
        """Return the keys of a seeded sample of training pictures, [BACKGROUND, K]."""
        key: PictureKey = self.learner.picture_key
        chosen = self.pictures.draw(np.random.default_rng(self.recipe.seed), BACKGROUND)
        patches, _ = self.pictures.whole(chosen)
        return torch.cat([key(batch) for batch in patches[:, 0].split(64)])


def _vision(workshop: Workshop, options: StageOptions) -> Stage:
    learner = workshop.learner
    early = workshop.cached(EarlyEncoder(learner.net), workshop.features_folder / "early")
    pictures = _joined([cached.split(TRAIN).captioned() for cached in early.values()], "captioned")
    stage = VisionStage(
        learner.net,
        (learner.picture_key.requires_grad_(True), learner.text_key.requires_grad_(True)),
        WordSpace(pictures.captions, learner.language),
        workshop.embedded(pictures),
        workshop.embedded(workshop.validation_of(early)),
        batch=options.batch,
    )
    learner.measure(stage.statistics(workshop.recipe.seed))
    return stage


def _words(workshop: Workshop, options: StageOptions) -> Stage:
    bridge = workshop.learner.bridge.requires_grad_(True)
    shop = workshop
    return WordStage(bridge, shop.words, shop.captioned, shop.validation, batch=options.batch)


def _keys(workshop: Workshop, options: StageOptions) -> Stage:
    learner = workshop.learner
    return KeyStage(
        learner.picture_key.requires_grad_(True),
        learner.text_key.requires_grad_(True),
        workshop.embedded(workshop.captioned),
        workshop.embedded(workshop.validation),
        batch=options.batch,
    )


def _captions(workshop: Workshop, options: StageOptions) -> Stage:
    learner = workshop.learner
    bridge = learner.bridge.requires_grad_(True)
    language, shop = learner.adapt(), workshop
    return CaptionStage(bridge, language, shop.pictures, shop.validation, batch=options.batch)


def _reward(workshop: Workshop, options: StageOptions) -> Stage:
    learner = workshop.learner
    bridge = learner.bridge.requires_grad_(True)
    language, shop = learner.adapt(), workshop
    return RewardStage(bridge, language, shop.captioned, shop.validation, batch=options.batch)


def _memory(workshop: Workshop, options: StageOptions) -> Stage:
    bridge, shop = workshop.learner.bridge, workshop
    return MemoryStage(bridge, shop.words, shop.captioned, shop.validation, batch=options.batch)


def _operators(workshop: Workshop, options: StageOptions) -> Stage:
    learner, shop = workshop.learner, workshop
    return OperatorStage(
        learner.questions.requires_grad_(True),
        learner.backbones.sentences(),
        (shop.told(TRAIN), shop.told(VALIDATION)),
        batch=options.batch,
        seed=shop.recipe.seed,
    )


STAGES: dict[str, Callable[[Workshop, StageOptions], Stage]] = {
    "vision": _vision,
    "words": _words,
    "keys": _keys,
    "captions": _captions,
    "reward": _reward,
    "memory": _memory,
    "operators": _operators,
}


def _sources(recipe: Recipe, out: Path) -> dict[str, Source]:
    """Read the records of every entry of ``data``, by entry."""
    sources = {}
    for entry in recipe.data:
        if entry.startswith(GENERATED):
            count = entry.removeprefix(GENERATED)
            if not count.isdigit() or int(count) < 5:
                raise ConfigError(f"data {entry}: give the number of pictures, at least 5")
            place = make_pictures(out / f"generated-{count}", int(count), recipe.seed)
        else:
            place = resolve(entry)
        sources[entry] = read_source(place)
    return sources


def _claim(out: Path, recipe: Recipe, text: str, init: Path | str | None) -> None:
    """Write whose folder this is, unless it is another run's.

    Raises:
        ConfigError: a run that this one does not continue was made here.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "run.json"
    start = str(init) if init else None
    if path.exists():
        try:
            claimed = json.loads(path.read_text())
            earlier = parse_recipe(tomllib.loads(claimed["recipe"]), "")
            same = recipe.continues(earlier) and claimed["init"] == start
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise ConfigError(
                f"{out}: holds a run of another recipe or start; give another output folder, "
                "or remove this one to train afresh"
            )
    path.write_text(json.dumps({"init": start, "recipe": text}) + "\n")


def _schedule(options: StageOptions, seed: int) -> Schedule:
    return Schedule(
        steps=options.steps,
        lr=options.lr,
        warmup=options.warmup,
        weight_decay=options.weight_decay,
        evaluate_every=options.evaluate_every,
        seed=seed,
    )


def _joined(sets: list[PictureSet], what: str) -> PictureSet:
    total = sets[0]
    for pictures in sets[1:]:
        total = total + pictures
    if not len(total):
        raise DatasetError(f"data: there is no {what} picture; add data")
    return total


def _save(workshop: Workshop, folder: Path) -> None:
    learner, start = workshop.learner, workshop.learner.start
    names = workshop.recipe.backbones
    trained_keys = any(options.kind in ("vision", "keys") for options in workshop.recipe.stages)
    # Thresholds are fitted to a checkpoint's own centre and background: they stay with its weights.
    model = VideoModel(
        name=workshop.recipe.name,
        vision=learner.vision,
        center=start.center if start else workshop.center(),
        bridge=learner.bridge,
        picture_key=learner.picture_key.eval(),
        text_key=learner.text_key.eval(),
        background=start.background if start and not trained_keys else workshop.background(),
        open_sentences=learner.backbones.sentences,
        open_language=learner.backbones.language,
        scenes=start.scenes if start else SceneTillingConfig(),
        questions=_question_head(workshop),
    )
    save(
        model,
        folder,
        backbones={
            "vision": names.vision,
            "language": names.language,
            "sentences": names.sentences,
        },
        lora=learner.lora,
        lora_scale=learner.lora_scale,
    )


def _question_head(workshop: Workshop) -> QuestionHead | None:
    start = workshop.learner.start
    trained = any(options.kind == "operators" for options in workshop.recipe.stages)
    if trained:
        return workshop.learner.questions.eval()
    return start.questions if start else None


def _figures(workshop: Workshop) -> dict[str, Any]:
    recipe, learner = workshop.recipe, workshop.learner
    stages = {}
    for options in recipe.stages:
        entries = read_log(workshop.out / f"{options.label}.jsonl")
        last = entries[-1] if entries else {}
        stages[options.label] = last | {"seconds": round(sum(e.get("seconds", 0) for e in entries))}
    learned = {
        "bridge": learner.bridge,
        "picture_key": learner.picture_key,
        "text_key": learner.text_key,
    }
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in learned.items()}
    counts["vision"] = sum(
        tensor.numel() for tensor in getattr(learner.vision, "changes", {}).values()
    )
    counts["lora"] = sum(tensor.numel() for tensor in learner.lora.values())
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "checkpoint": str(workshop.out / CHECKPOINT),
        "pictures": {TRAIN: len(workshop.pictures), VALIDATION: len(workshop.validation)},
        "parameters": counts,
        "stages": stages,
    }
