"""A whole training run: features, stages in order, a checkpoint, figures, curves.

What a stage learns stands in its own module; how a model is put together, in ``checkpoint.py``.
"""

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from streammem.errors import ConfigError
from streammem.memory.retrieval import DEFAULT_NULL
from streammem.models.checkpoint import check_device, save
from streammem.models.tiny.keys import WordsOfCells
from streammem.models.tiny.model import VideoModel
from streammem.models.tiny.questions import QuestionHead
from streammem.perception.scenetilling import SceneTillingConfig
from streammem.training.answers import AnswerStage
from streammem.training.captions import CaptionStage
from streammem.training.curves import check_matplotlib, draw_curves
from streammem.training.evidence import EVIDENCE_RANK, EvidenceData, EvidenceStage
from streammem.training.generated import SENTENCES, make_pictures
from streammem.training.keys import KeyStage
from streammem.training.learner import Backbones, Learner, open_by_name
from streammem.training.loop import Schedule, Stage, read_log, train
from streammem.training.lora import check_peft
from streammem.training.operators import OperatorStage
from streammem.training.processes import join
from streammem.training.recipe import (
    GENERATED,
    Recipe,
    StageOptions,
    parse_recipe,
    read_recipe,
    resolve,
    text_file,
)
from streammem.training.records import TRAIN, VALIDATION, Source, read_source
from streammem.training.reward import RewardStage
from streammem.training.sentences import read_sentences
from streammem.training.text import PrefixStage, TextStage
from streammem.training.vision import EarlyEncoder, VisionStage
from streammem.training.words import WordSpace, WordStage
from streammem.training.workshop import Workshop, joined

CHECKPOINT = "checkpoint"
KEY_KINDS = ("vision", "keys", "evidence")  # stages that move the keys


def run(
    recipe_path: Path,
    out: Path,
    *,
    init: Path | str | None = None,
    backbones: Backbones | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Train a model by a recipe, or go on where a killed run of it stopped.

    In several processes (``accelerate launch``) each takes batches of its own at every step; the
    first one writes.

    Args:
        recipe_path: TOML; see ``Recipe``.
        out: folder of this run; gets ``checkpoint/`` (a model for ``load``), ``figures.json``,
            ``loss.png``, and what a resumed run needs: ``run.json``, each stage's weights and log,
            and the features, unless the recipe puts these elsewhere.
        init: a checkpoint folder or preset to start from; None starts afresh.
        backbones: opened models in place of those that the recipe names, the language model on
            ``device``.
        device: where the learned parts and the language model are, see ``join``. Features are
            made and kept on the CPU.

    Returns:
        What ``figures.json`` holds: data, parameters, and each stage's steps, seconds and figures;
        nothing in a process that is not the first.

    Raises:
        ConfigError: a recipe that cannot be meant, an output folder of another run, or no such
            device.
        DatasetError: data that are missing or malformed.
        BackboneError: weights or packages that are missing.
        CheckpointError: ``init`` or interim weights that do not fit the recipe.
    """
    recipe = read_recipe(recipe_path)
    check_matplotlib()
    if any(stage.kind in ("captions", "text", "reward", "answers") for stage in recipe.stages):
        check_peft()
    check_device(device or "cpu")
    with join(device) as (team, own_device):
        with team.first_goes_first():
            sources, texts = _sources(recipe, out), _texts(recipe, out)
            _claim(out, recipe, recipe_path.read_text(), init)
        opened = backbones or open_by_name(recipe.backbones, own_device)
        learner = Learner.open(recipe, opened, init, device=own_device)
        workshop = Workshop(recipe, out, learner, sources, team, texts)
        _train_stages(workshop, recipe_path.read_text())
        _ = workshop.features  # if no stage asked for them: the processes make them together
        figures = _finish(workshop) if team.is_first else {}
        team.wait()
    return figures


def _train_stages(workshop: Workshop, recipe_text: str) -> None:
    recipe, out = workshop.recipe, workshop.out
    for options in recipe.stages:
        stage = STAGES[options.kind](workshop, options)
        stage.name = options.label
        schedule = _schedule(options, recipe.seed)
        train(stage, schedule, out, recipe=recipe_text, team=workshop.team)
        if isinstance(stage, VisionStage):
            workshop.learner.retune(stage.tuned())
            workshop.learner.words_of_cells = stage.words(recipe.seed)
        if isinstance(stage, EvidenceStage):
            stage.join(recipe.seed)


def _finish(workshop: Workshop) -> dict[str, Any]:
    """Write the checkpoint, the curves and the figures."""
    out = workshop.out
    _save(workshop, out / CHECKPOINT)
    draw_curves([options.label for options in workshop.recipe.stages], out)
    figures = _figures(workshop)
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def _vision(workshop: Workshop, options: StageOptions) -> Stage:
    learner = workshop.learner
    early = workshop.cached(EarlyEncoder(learner.net), workshop.features_folder / "early")
    pictures = joined([cached.split(TRAIN).captioned() for cached in early.values()], "captioned")
    pictures = replace(pictures, device=learner.device)
    space = WordSpace(pictures.captions, learner.language)
    data = [workshop.embedded(p) for p in (pictures, workshop.validation_of(early))]
    keys = learner.plain_keys()
    torch.manual_seed(workshop.recipe.seed)  # opening a backbone may have drawn numbers
    stage = VisionStage(learner.net, keys, space, *data, batch=options.batch)
    learner.measure(stage.statistics(workshop.recipe.seed))
    return stage


def _words(workshop: Workshop, options: StageOptions) -> Stage:
    bridge = workshop.learner.bridge.requires_grad_(True)
    shop = workshop
    return WordStage(bridge, shop.words, shop.captioned, shop.validation, batch=options.batch)


def _keys(workshop: Workshop, options: StageOptions) -> Stage:
    learner = workshop.learner
    return KeyStage(
        *learner.plain_keys(),
        workshop.embedded(workshop.captioned),
        workshop.embedded(workshop.validation),
        batch=options.batch,
    )


def _evidence(workshop: Workshop, options: StageOptions) -> Stage:
    learner, shop = workshop.learner, workshop
    data = EvidenceData(
        shop.embedded(shop.captioned),
        shop.embedded(shop.validation),
        shop.sentences if shop.has_sentences else None,
    )
    space, cells = shop.words, learner.words_of_cells
    torch.manual_seed(shop.recipe.seed)  # opening a backbone may have drawn numbers
    if cells is None:
        width = min(learner.vision.frame_dim, learner.vision.patch_dim)
        cells = WordsOfCells(width, len(space.words), min(EVIDENCE_RANK, width))
        cells.start(space.prior)
    return EvidenceStage(
        learner.plain_keys(),
        space,
        data,
        cells,
        learn_cells=learner.words_of_cells is None,
        batch=options.batch,
    )


def _captions(workshop: Workshop, options: StageOptions) -> Stage:
    learner = workshop.learner
    bridge = learner.bridge.requires_grad_(True)
    language, shop = learner.adapt(), workshop
    return CaptionStage(bridge, language, shop.pictures, shop.validation, batch=options.batch)


def _prefix(workshop: Workshop, options: StageOptions) -> Stage:
    shop = workshop
    captioned, measured = shop.embedded(shop.captioned), shop.embedded(shop.validation)
    return PrefixStage(
        shop.prefix.requires_grad_(True),
        shop.learner.bridge,
        captioned,
        measured,
        batch=options.batch,
    )


def _text(workshop: Workshop, options: StageOptions) -> Stage:
    shop = workshop
    language = shop.learner.adapt()
    photos = CaptionStage(shop.learner.bridge, language, shop.pictures, shop.validation)
    return TextStage(
        photos,
        shop.prefix,
        shop.sentences,
        shop.embedded(shop.validation),
        batch=options.batch,
        share=options.photos,
    )


def _reward(workshop: Workshop, options: StageOptions) -> Stage:
    learner = workshop.learner
    bridge = learner.bridge.requires_grad_(True)
    language, shop = learner.adapt(), workshop
    return RewardStage(bridge, language, shop.captioned, shop.validation, batch=options.batch)


def _answers(workshop: Workshop, options: StageOptions) -> Stage:
    learner, shop = workshop.learner, workshop
    language = learner.adapt()
    return AnswerStage(
        learner.bridge, language, shop.captioned, shop.validation, batch=options.batch
    )


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
    "evidence": _evidence,
    "captions": _captions,
    "prefix": _prefix,
    "text": _text,
    "reward": _reward,
    "answers": _answers,
    "operators": _operators,
}


def _sources(recipe: Recipe, out: Path) -> dict[str, Source]:
    """Read the records of every entry of ``data``, by entry."""
    sources = {}
    for entry in recipe.pictures:
        if entry.startswith(GENERATED):
            count = entry.removeprefix(GENERATED)
            if not count.isdigit() or int(count) < 5:
                raise ConfigError(f"data {entry}: give the number of pictures, at least 5")
            place = make_pictures(out / f"generated-{count}", int(count), recipe.seed)
        else:
            place = resolve(entry)
        sources[entry] = read_source(place)
    return sources


def _texts(recipe: Recipe, out: Path) -> list[str]:
    """Read the sentences of ``data`` that belong to no picture."""
    files = [(resolve(named[0]), named[1]) for e in recipe.data if (named := text_file(e))]
    counts = [e.removeprefix(GENERATED) for e in recipe.data if e.startswith(GENERATED)]
    files += [(out / f"generated-{count}" / SENTENCES, "") for count in counts]
    return [text for path, column in files for text in read_sentences(path, column)]


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


def _save(workshop: Workshop, folder: Path) -> None:
    learner, start = workshop.learner, workshop.learner.start
    names = workshop.recipe.backbones
    trained_keys = any(options.kind in KEY_KINDS for options in workshop.recipe.stages)
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
        choice=start.choice if start else None,
        chance=start.chance if start else DEFAULT_NULL,
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
