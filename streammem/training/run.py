"""A whole training run by a recipe: features, stages in order, a checkpoint, figures, curves.

    figures = run_recipe(Path("configs/train/streammem-tiny.toml"), Path("out"))
    model = load("out/checkpoint")

Each stage has a module of its own; ``models/checkpoint.py`` writes the checkpoint.
"""

import json
import logging
import shutil
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streammem.errors import ConfigError, StreammemError
from streammem.memory.retrieval import DEFAULT_NULL
from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.checkpoint import check_device, save
from streammem.models.tiny.keys import WordsOfCells
from streammem.models.tiny.model import VideoModel
from streammem.models.tiny.questions import QuestionHead
from streammem.models.tiny.words import LEAST_SHOWN, SHOWN
from streammem.perception.scenetilling import SceneTillingConfig
from streammem.training import published
from streammem.training.answers import AnswerStage, askable, own_captions
from streammem.training.captions import CaptionStage, caption_tokens
from streammem.training.context import TrainingContext, joined
from streammem.training.evidence import EVIDENCE_RANK, EvidenceData, EvidenceStage
from streammem.training.features import CachedFeatures, replace_text
from streammem.training.generated import SENTENCES, make_pictures
from streammem.training.keys import KeyStage
from streammem.training.learner import Backbones, Learner, open_by_name
from streammem.training.loop import (
    JointStage,
    Schedule,
    Stage,
    check_matplotlib,
    draw_curves,
    read_log,
    train_stage,
)
from streammem.training.lora import check_peft
from streammem.training.operators import OperatorStage
from streammem.training.processes import ProcessGroup, join_processes
from streammem.training.recipe import (
    GENERATED,
    Recipe,
    StageOptions,
    parse_recipe,
    read_recipe,
    resolve_data,
    text_file,
)
from streammem.training.records import TRAIN, VALIDATION, CaptionedSource, read_source
from streammem.training.reward import RewardStage
from streammem.training.self_training import (
    SelfTrainingStage,
    best_captions,
    draw_captions,
    start_that_chooses,
)
from streammem.training.sentences import read_sentences
from streammem.training.text import PrefixStage, TextStage
from streammem.training.things import ThingStage, cross_fitted, tokens_of
from streammem.training.vision import EarlyEncoder, VisionStage
from streammem.training.words import WordSpace, WordStage

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
CLAIM = "run.json"  # names the run that a folder belongs to
DRAWS = "{}-draws.jsonl"  # by the stage's name
ANSWERS_WEIGHT = 0.4  # of the loss of answers that are learned beside captions
THING_STEPS = 450  # of each head that names what training pictures show in questions about them
KEY_STAGES = ("vision", "keys", "evidence")  # stages that move the keys
CAPTION_STAGES = (
    "captions",
    "text",
    "reward",
    "self-training",
)  # stages in which the language model learns words
LORA_STAGES = (*CAPTION_STAGES, "answers")


def run_recipe(
    recipe_path: Path,
    out: Path,
    *,
    init: Path | str | None = None,
    backbones: Backbones | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Train a model by a recipe, or continue a killed run of it.

    With several processes (``accelerate launch``) each draws batches of its own at every step; the
    first one writes.

    Args:
        recipe_path: TOML; see ``Recipe``.
        out: folder of this run; gets ``checkpoint/`` (a model for ``load``), ``figures.json``,
            ``loss.png``, and what a resumed run needs: ``run.json``, each stage's weights and log,
            and the features, unless the recipe names another folder for these.
        init: a checkpoint folder or preset to start from; None starts afresh.
        backbones: opened models in place of those that the recipe names, the language model on
            ``device``.
        device: of the learned parts and the language model, see ``join_processes``. Features are
            made and kept on the CPU.

    Returns:
        The content of ``figures.json``: data, parameters, and each stage's steps, seconds and
        figures; empty in processes other than the first.

    Raises:
        ConfigError: an invalid recipe, an output folder of another run, or no such device.
        DatasetError: data that are missing or malformed.
        BackboneError: weights or packages that are missing.
        CheckpointError: ``init`` or interim weights that do not fit the recipe.
    """
    if published.stage_class(recipe_path):
        if init:
            raise ConfigError(f"--init: {recipe_path} names the model that it starts from")
        return published.run_parent_recipe(recipe_path, out, device)
    # 1. Check everything that could fail after hours.
    recipe = read_recipe(recipe_path)
    recipe_text = recipe_path.read_text()
    check_matplotlib()
    if any(stage.kind in LORA_STAGES for stage in recipe.stages):
        check_peft()
    check_device(device or "cpu")
    with join_processes(device) as (group, own_device):
        # 2. Read the data; open the backbones and the weights to start from.
        with _removed_if_refused(recipe, out, group):
            with group.first_process_first():
                _check_folder(out, recipe, init)
                sources, texts = _read_pictures(recipe, out), _read_sentences(recipe, out)
            opened = backbones or open_by_name(recipe.backbones, own_device)
            learner = Learner.open(recipe, opened, init, device=own_device)
            context = TrainingContext(recipe, out, learner, sources, group, texts)
            for options in recipe.stages:
                if options.kind == "self-training":
                    _check_self_training(context, sources, options)
        group.wait()  # until all have looked at the folder
        if group.is_first:  # no earlier: a run that is refused holds no folder
            _claim_folder(out, recipe_text, init)
        # 3. Train the stages in order.
        for options in recipe.stages:
            began = time.monotonic()
            stage = make_stage(context, options)
            stage.name = options.label
            schedule = Schedule(
                steps=options.steps,
                lr=options.lr,
                warmup=options.warmup,
                weight_decay=options.weight_decay,
                evaluate_every=options.evaluate_every,
                seed=recipe.seed,
            )
            last = train_stage(stage, schedule, out, recipe=recipe_text, group=group)
            if isinstance(stage, VisionStage):
                learner.retune(stage.tuned())
                learner.words_of_cells = stage.words(recipe.seed)
            if isinstance(stage, EvidenceStage):
                stage.attach(recipe.seed)
            if isinstance(stage, ThingStage):
                learner.words = stage.words.eval()
            if group.is_first:
                took_s = time.monotonic() - began
                log.info("stage %s done in %.0f s: %s", options.label, took_s, last)
        # 4. Write the checkpoint, the curves and the figures. Features that no stage has asked for
        # are made by all processes together, before the first one alone reads them.
        _ = context.features
        figures: dict[str, Any] = {}
        if group.is_first:
            _save_checkpoint(context)
            draw_curves([options.label for options in recipe.stages], out)
            figures = _figures(context)
            (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
        group.wait()
    return figures


def make_stage(context: TrainingContext, options: StageOptions) -> Stage:
    """Make a stage of the kind that ``options`` name; its features are made if need be."""
    learner, batch = context.learner, options.batch
    match options.kind:
        case "vision":
            early = context.cached(EarlyEncoder(learner.net), context.features_folder / "early")
            pictures = joined(
                [cached.split(TRAIN).captioned() for cached in early.values()], "captioned"
            )
            pictures = replace(pictures, device=learner.device)
            space = WordSpace(pictures.captions, learner.language)
            embedded = [context.embedded(p) for p in (pictures, context.validation_of(early))]
            keys = learner.plain_keys()
            torch.manual_seed(context.recipe.seed)  # opening a backbone may have drawn numbers
            stage = VisionStage(learner.net, keys, space, *embedded, batch=batch)
            learner.measure(stage.statistics(context.recipe.seed))
            return stage
        case "words":
            bridge = learner.bridge.requires_grad_(True)
            return WordStage(
                bridge, context.words, context.captioned, context.validation, batch=batch
            )
        case "keys":
            return KeyStage(
                *learner.plain_keys(),
                context.embedded(context.captioned),
                context.embedded(context.validation),
                batch=batch,
            )
        case "evidence":
            data = EvidenceData(
                context.embedded(context.captioned),
                context.embedded(context.validation),
                context.sentences if context.has_sentences else None,
            )
            space, cells = context.words, learner.words_of_cells
            torch.manual_seed(context.recipe.seed)  # opening a backbone may have drawn numbers
            if cells is None:
                width = min(learner.vision.frame_dim, learner.vision.patch_dim)
                cells = WordsOfCells(width, len(space.words), min(EVIDENCE_RANK, width))
                cells.start(space.prior)
            learn_cells = learner.words_of_cells is None
            keys = learner.plain_keys()
            return EvidenceStage(keys, space, data, cells, learn_cells=learn_cells, batch=batch)
        case "captions":
            bridge, language = learner.bridge.requires_grad_(True), learner.adapt()
            return CaptionStage(bridge, language, context.pictures, context.validation, batch=batch)
        case "prefix":
            captioned = context.embedded(context.captioned)
            measured = context.embedded(context.validation)
            prefix = context.prefix.requires_grad_(True)
            return PrefixStage(prefix, learner.bridge, captioned, measured, batch=batch)
        case "text":
            language = learner.adapt()
            photos = CaptionStage(learner.bridge, language, context.pictures, context.validation)
            return TextStage(
                photos,
                context.prefix,
                context.sentences,
                context.embedded(context.validation),
                batch=batch,
                share=options.photos,
            )
        case "reward":
            bridge, language = learner.bridge.requires_grad_(True), learner.adapt()
            return RewardStage(bridge, language, context.captioned, context.validation, batch=batch)
        case "things":
            listed, measured_things = context.pictures, context.validation_things
            torch.manual_seed(context.recipe.seed)
            return ThingStage(learner.bridge, listed, measured_things, batch=batch)
        case "answers":
            return _answer_stage(context, learner.answering, batch)
        case "self-training":
            start, reranker = start_that_chooses(learner)
            with context.group.first_process_first():
                # The bridge is the start's, which the learner has moved to where it learns.
                drawn = draw_captions(
                    learner.bridge,
                    start.language,
                    context.pictures,
                    context.out / DRAWS.format(options.label),
                    context.recipe.seed,
                )
            kept = best_captions(learner, reranker, context.pictures, drawn)
            context.own_captions += [caption for of_picture in kept for caption in of_picture]
            language = learner.adapt()
            drawing = SelfTrainingStage(
                learner.bridge, language, context.pictures, kept, context.validation, batch=batch
            )
            if not options.answers:
                return drawing
            asking = _answer_stage(context, language, options.answers)
            return JointStage([drawing, asking], [1 - ANSWERS_WEIGHT, ANSWERS_WEIGHT])
        case "operators":
            return OperatorStage(
                learner.questions.requires_grad_(True),
                learner.backbones.sentences(),
                (context.captions_of(TRAIN), context.captions_of(VALIDATION)),
                batch=batch,
                seed=context.recipe.seed,
            )
    raise ConfigError(f"kind {options.kind!r}: no such stage")


def _check_self_training(
    context: TrainingContext, sources: dict[str, CaptionedSource], options: StageOptions
) -> None:
    """Check what a stage needs that first draws captions for hours.

    Raises:
        ConfigError: no start, or one that does not choose among captions.
        DatasetError: no captioned validation picture, or none to ask about if it is to ask.
    """
    start_that_chooses(context.learner)
    # Records tell it; features take hours, and a refused run is to leave none.
    none = np.empty(0)
    listed = {entry: CachedFeatures(source, none, none) for entry, source in sources.items()}
    context.validation_of(listed)
    if options.answers:
        askable(joined([cached.split(TRAIN) for cached in listed.values()], "training"))


def _answer_stage(
    context: TrainingContext, language: CausalLanguageModel, batch: int
) -> AnswerStage:
    """Make the stage of answers, with captions and names as its prompts will have them."""
    learner, pictures, measured = context.learner, context.pictures, context.validation_asked
    captions = own_captions(learner.bridge, learner.adapt(), pictures + measured)
    named: dict[str, list[str]] = {}
    if learner.words:
        seed = context.recipe.seed
        fitted = cross_fitted(learner.bridge, pictures, steps=THING_STEPS, seed=seed)
        named |= zip(pictures.names, fitted, strict=True)
        # A start's own head stays where it was read, one that has learned where it has.
        device = learner.words.center.device
        seen = torch.from_numpy(tokens_of(learner.bridge, measured, views=1)[:, 0]).to(device)
        for name, tokens in zip(measured.names, seen, strict=True):
            named[name] = learner.words.likely(tokens, SHOWN, LEAST_SHOWN)
    return AnswerStage(
        learner.bridge,
        language,
        pictures,
        measured,
        captions=captions,
        named=named,
        batch=batch,
    )


def _read_pictures(recipe: Recipe, out: Path) -> dict[str, CaptionedSource]:
    """Read the records of every entry of ``data``, by entry."""
    sources = {}
    for entry in recipe.pictures:
        if entry.startswith(GENERATED):
            count = entry.removeprefix(GENERATED)
            if not count.isdigit() or int(count) < 5:
                raise ConfigError(f"data {entry}: give the number of pictures, at least 5")
            place = make_pictures(_generated_folder(entry, out), int(count), recipe.seed)
        else:
            place = resolve_data(entry)
        sources[entry] = read_source(place)
    return sources


def _read_sentences(recipe: Recipe, out: Path) -> list[str]:
    """Read the sentences of ``data`` that belong to no picture."""
    files = [(resolve_data(named[0]), named[1]) for e in recipe.data if (named := text_file(e))]
    made = [_generated_folder(e, out) for e in recipe.data if e.startswith(GENERATED)]
    files += [(folder / SENTENCES, "") for folder in made]
    return [text for path, column in files for text in read_sentences(path, column)]


def _generated_folder(entry: str, out: Path) -> Path:
    """Return the folder of the pictures that an entry of ``data`` makes."""
    return out / f"generated-{entry.removeprefix(GENERATED)}"


@contextmanager
def _removed_if_refused(recipe: Recipe, out: Path, group: ProcessGroup) -> Iterator[None]:
    """Remove what the block generates if the run is refused in it."""
    generated = [_generated_folder(e, out) for e in recipe.data if e.startswith(GENERATED)]
    new, out_is_new = [folder for folder in generated if not folder.exists()], not out.exists()
    try:
        yield
    except StreammemError:
        for folder in new if group.is_first else ():
            shutil.rmtree(folder, ignore_errors=True)
        if out_is_new:
            with suppress(OSError):  # not there, or with files of others
                out.rmdir()
        raise


def _check_folder(out: Path, recipe: Recipe, init: Path | str | None) -> None:
    """Check that the folder belongs to no run, or to one that this one continues.

    Raises:
        ConfigError: it belongs to another run.
    """
    path = out / CLAIM
    if not path.exists():
        return
    try:
        claimed = json.loads(path.read_text())
        earlier = parse_recipe(tomllib.loads(claimed["recipe"]), "")
        same = recipe.continues(earlier) and claimed["init"] == _start_name(init)
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ConfigError(
            f"{out}: holds a run of another recipe or start; give another output folder, "
            "or remove this one to train afresh"
        )


def _claim_folder(out: Path, text: str, init: Path | str | None) -> None:
    """Write which run the folder belongs to."""
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / CLAIM, json.dumps({"init": _start_name(init), "recipe": text}) + "\n")


def _start_name(init: Path | str | None) -> str | None:
    return str(init) if init else None


def _save_checkpoint(context: TrainingContext) -> None:
    learner, start = context.learner, context.learner.start
    names = context.recipe.backbones
    kinds = {options.kind for options in context.recipe.stages}
    if "operators" in kinds:
        questions: QuestionHead | None = learner.questions.eval()
    else:
        questions = start.questions if start else None
    tokens = start.caption_tokens if start else None
    # What an earlier run learned from without such a list is not known.
    if kinds & set(CAPTION_STAGES) and (start is None or tokens is not None):
        tokens = caption_tokens(learner.language, context.captions, tokens)
    # Thresholds are fitted to a checkpoint's own centre and background: they stay with its weights.
    keeps_background = start is not None and not kinds & set(KEY_STAGES)
    model = VideoModel(
        name=context.recipe.name,
        vision=learner.vision,
        center=start.center if start else context.center(),
        bridge=learner.bridge,
        picture_key=learner.picture_key.eval(),
        text_key=learner.text_key.eval(),
        background=start.background if start and keeps_background else context.background(),
        open_sentences=learner.backbones.sentences,
        open_language=learner.backbones.language,
        scenes=start.scenes if start else SceneTillingConfig(),
        reranker=start.reranker if start else None,
        null=start.null if start else DEFAULT_NULL,
        questions=questions,
        caption_tokens=tokens,
        words=learner.words,
        # They were fitted to these keys and these names of tokens.
        names=(
            start.names if start and keeps_background and learner.words is start.words else None
        ),
    )
    save(
        model,
        context.out / CHECKPOINT,
        backbones={
            "vision": names.vision,
            "language": names.language,
            "sentences": names.sentences,
        },
        lora=learner.lora,
        lora_scale=learner.lora_scale,
        answers=learner.answers,
    )


def _figures(context: TrainingContext) -> dict[str, Any]:
    recipe, learner = context.recipe, context.learner
    stages = {}
    for options in recipe.stages:
        entries = read_log(context.out / f"{options.label}.jsonl")
        last = entries[-1] if entries else {}
        stages[options.label] = last | {"seconds": round(sum(e.get("seconds", 0) for e in entries))}
    learned = {
        "bridge": learner.bridge,
        "picture_key": learner.picture_key,
        "text_key": learner.text_key,
    }
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in learned.items()}
    counts["vision"] = sum(tensor.numel() for tensor in learner.encoder_changes.values())
    counts["lora"] = sum(tensor.numel() for tensor in learner.lora.values())
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "checkpoint": str(context.out / CHECKPOINT),
        "pictures": {TRAIN: len(context.pictures), VALIDATION: len(context.validation)},
        "parameters": counts,
        "stages": stages,
    }
