"""Self-training: captions that the model draws itself, of which it learns from the best.

    start, reranker = start_that_chooses(learner)
    drawn = draw_captions(learner.bridge, start.language, pictures, Path("out/draws.jsonl"))
    kept = best_captions(learner, reranker, pictures, drawn)
    stage = SelfTrainingStage(learner.bridge, learner.adapt(), pictures, kept, validation)

Pictures without captions teach the LoRA to name what they show: up to half of their captions begin
with what their lists are sure of, and those are kept that name what is listed, fit the picture's
key, are likely, and name little that other lists have and theirs lacks. Beside them stand pictures
with people's captions, a sample: of these, captions are kept that are most like people's. The
bridge stays.

Source: self-training with a filter, as in ReST (arXiv 2308.08998), sections 2 and 3.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from streammem.errors import ConfigError, DatasetError
from streammem.evaluation.metrics import CiderD, tokenise
from streammem.models.backbones.language import Beginnings, CausalLanguageModel, Prompt
from streammem.models.backbones.sampling import GenerationConfig
from streammem.models.caption_scores import Reranker, reranking_features
from streammem.models.tiny.bridge import MemoryBridge
from streammem.models.tiny.model import CAPTION_INSTRUCTION, VideoModel
from streammem.models.tiny.words import FOLLOWING, NOT_BEGUN, NamesInText, takes_article
from streammem.training.captions import BranchedPrompt, caption_prompt, reply_losses
from streammem.training.features import replace_text
from streammem.training.learner import Learner
from streammem.training.lora import lora_parameters
from streammem.training.nouns import indefinite, plural
from streammem.training.pictures import WHOLE, PictureSet
from streammem.training.reward import greedy_caption_figures, sample_captions
from streammem.training.things import PERSON, tokens_of

log = logging.getLogger(__name__)
DRAWN = 12  # captions of a picture, half of which may begin with what its list names
CAPTIONED_DRAWN = 2000  # pictures with people's captions: they hold against what lists teach
DRAWN_TOGETHER, JUDGED_TOGETHER = 8, 64  # pictures
DECODING = GenerationConfig(max_new_tokens=32, vocabulary="captions")
BEGUN = 3  # listed things with which captions begin
SURE = 0.42  # share of a listed thing with which captions begin
KEPT, MARGIN = 2, 0.15  # captions of a picture to learn from; by how much the second may be worse
NAMED, DENIED = 0.3, 0.25  # worth, in CIDEr-D, of naming what a list has, and what it could have
NAMES_PAID = 2  # listed things that count for a caption; longer lists are no better captions
ROW_WIDTH = 448  # columns of a row that several pictures share
LISTED_SHARE = 0.5  # of the pictures in a step, those without people's captions
MIRRORED_SHARE = 0.4
RIDDEN = frozenset(
    "bicycle elephant horse motorcycle skateboard skis snowboard surfboard".split()  # noqa: SIM905
)
HELD = frozenset({
    "apple", "bag", "ball", "banana", "baseball bat", "baseball glove", "book", "bottle", "bowl",
    "cake", "cat", "cup", "dog", "donut", "fork", "frisbee", "glass", "handbag", "hot dog", "kite",
    "knife", "laptop", "phone", "pizza", "remote", "sandwich", "scissors", "spoon", "suitcase",
    "teddy bear", "tennis racket", "toothbrush", "toy", "umbrella", "wine glass",
})  # fmt: skip
PLACED = {"bed": "sitting on", "bench": "sitting on", "chair": "sitting on", "sofa": "sitting on",
          "table": "sitting at", "boat": "in"}  # fmt: skip


class DrawnCaption(NamedTuple):
    """A caption that the model drew, with the mean log-probability of the tokens it chose."""

    text: str
    log_prob: float


def draw_captions(
    bridge: MemoryBridge,
    language: CausalLanguageModel,
    pictures: PictureSet,
    path: Path,
    seed: int = 0,
) -> dict[str, list[DrawnCaption]]:
    """Draw ``DRAWN`` captions of each picture, or continue a killed run of it.

    Args:
        bridge: frozen, on the device of the pictures.
        language: that draws, decoding as it does when the model runs; on any device.
        pictures: each with captions, a list of things, or neither, which is passed over; of those
            with captions alone ``CAPTIONED_DRAWN``, by chance.
        path: JSON lines, one a picture; written as pictures are done, and only read once all are.
        seed: of each picture, so that what is drawn does not depend on where a run was killed.

    Returns:
        The captions of each picture by its name.
    """
    drawn = _read_draws(path)
    wanted = [i for i, things in enumerate(pictures.things) if things]
    captioned = [i for i, of in enumerate(pictures.captions) if of and not pictures.things[i]]
    rng, count = np.random.default_rng(seed), min(CAPTIONED_DRAWN, len(captioned))
    wanted += rng.choice(captioned, count, replace=False).tolist()
    wanted = [i for i in wanted if pictures.names[i] not in drawn]
    if not wanted:
        return drawn
    with (
        open(path, "a") as lines,
        tqdm(total=len(drawn) + len(wanted), initial=len(drawn), desc="captions drawn") as bar,
    ):
        for begin in range(0, len(wanted), DRAWN_TOGETHER):
            block = pictures.select(wanted[begin : begin + DRAWN_TOGETHER])
            tokens = torch.from_numpy(tokens_of(bridge, block, views=1)[:, WHOLE])
            with torch.no_grad():
                visual = bridge.to_language(tokens.float().to(pictures.device))
            prompts: list[Prompt] = []
            for own, listed in zip(visual, block.things, strict=True):
                texts = Beginnings(listed_beginnings(listed), FOLLOWING)
                prompts.append(language.chat([own, CAPTION_INSTRUCTION, texts]))
            candidates = language.candidates(prompts, replace(DECODING, seed=seed), DRAWN)
            for name, replies in zip(block.names, candidates, strict=True):
                drawn[name] = [
                    DrawnCaption(r.text, round(float(np.mean(r.log_probs or [-9])), 4))
                    for r in replies
                ]
                lines.write(json.dumps({"picture": name, "captions": drawn[name]}) + "\n")
            lines.flush()
            bar.update(len(block))
    return drawn


def _read_draws(path: Path) -> dict[str, list[DrawnCaption]]:
    """Read what a killed run has drawn; a line that was cut off is drawn again."""
    if not path.exists():
        return {}
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        replace_text(path, "".join(whole))
    try:
        rows = [json.loads(line) for line in whole]
        return {r["picture"]: [DrawnCaption(*one) for one in r["captions"]] for r in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: no captions drawn ({error}); move it away") from error


def listed_beginnings(things: Sequence[tuple[str, float]]) -> tuple[str, ...]:
    """Return with what captions of a picture may begin, by its list: with things, with a person.

    Who the person is no list tells, so it is "a person".
    """
    counts = Counter(name for name, share in things if share >= SURE)
    shares = {name: max(share for n, share in things if n == name) for name in counts}
    sure = sorted(counts, key=lambda name: -shares[name])
    names = [name for name in sure if name not in NOT_BEGUN][:BEGUN]
    texts = [_counted(name, counts[name]) for name in names]
    if PERSON in sure:
        texts += [f"a person {_verb(name)} {indefinite(name)}" for name in names[:2]]
    pairs = [" and ".join(texts[:2])] if len(names) > 1 else []
    return tuple(text[0].upper() + text[1:] for text in [*texts, *pairs])


def _counted(name: str, count: int) -> str:
    """Name one thing, two, or a group."""
    if count == 1 or not takes_article(name):
        return indefinite(name)
    return f"{'two' if count == 2 else 'a group of'} {plural(name)}"


def _verb(name: str) -> str:
    if name in RIDDEN:
        return "riding"
    return "holding" if name in HELD else PLACED.get(name, "with")


class CaptionJudge:
    """Says what a drawn caption is worth, in CIDEr-D.

    A picture with people's captions: the CIDEr-D against them. A picture with a list: how well its
    words fit its key and how likely they are, as captions are chosen when the model runs; and
    ``NAMED`` for each listed thing that it names, less ``DENIED`` for each thing that pictures of
    its folder list but this one does not.

    Args:
        pictures: whose captions are judged.
        reranker: how fit and likelihood count.
    """

    def __init__(self, pictures: PictureSet, reranker: Reranker) -> None:
        self.pictures, self._reranker = pictures, reranker
        self._references = [
            [] if made else [tokenise(caption) for caption in captions]
            for captions, made in zip(pictures.captions, pictures.made, strict=True)
        ]
        captioned = [references for references in self._references if references]
        self._cider = CiderD(captioned) if captioned else None
        listed = dict[int, set[str]]()  # by source: the names that its lists have
        for (source, _), things in zip(pictures.rows, pictures.things, strict=True):
            listed.setdefault(source, set()).update(name for name, _ in things)
        self._names_in = {source: NamesInText(sorted(own)) for source, own in listed.items()}

    def worths(
        self, picture: int, drawn: Sequence[DrawnCaption], keys: np.ndarray, key: np.ndarray
    ) -> np.ndarray:
        """Return what each caption of a picture is worth, [N]; -inf for what is not to be kept.

        Args:
            picture: its index.
            drawn: N captions.
            keys: [N, K] unit keys of them.
            key: [K] unit key of the picture.
        """
        if self._cider and (references := self._references[picture]):
            return np.array([self._cider.score(tokenise(one.text), references) for one in drawn])
        log_probs = [one.log_prob for one in drawn]
        fits = reranking_features(log_probs, keys, key[None]) @ np.array(self._reranker.weights)
        return fits + [self._naming(picture, one.text) for one in drawn]

    def _naming(self, picture: int, text: str) -> float:
        shares = dict[str, float]()
        for name, share in self.pictures.things[picture]:
            shares[name] = max(share, shares.get(name, 0.0))
        source, _ = self.pictures.rows[picture]
        names_in = self._names_in[source]
        named = {names_in.names[i] for i in names_in(text)}
        right = sorted((shares[name] for name in named & shares.keys()), reverse=True)
        sure = {name for name, share in shares.items() if share >= SURE}
        if not named & (sure - NOT_BEGUN - {PERSON} or sure or shares.keys()):
            return -np.inf  # it tells nothing of what the list does
        return NAMED * sum(right[:NAMES_PAID]) - DENIED * len(named - shares.keys())


def start_that_chooses(learner: Learner) -> tuple[VideoModel, Reranker]:
    """Return the model that a learner starts from, which draws captions, and how it chooses.

    Raises:
        ConfigError: it starts from none, or from one that does not choose.
    """
    if learner.start is None:
        raise ConfigError(
            "stage self-training: needs a start that captions and chooses among captions; "
            "give --init, for example --init streammem-tiny"
        )
    if learner.start.reranker is None:
        raise ConfigError(
            f"stage self-training: {learner.init} does not choose among captions yet; fit that: "
            f"python -m benchmarks choice --fit {learner.init}, or start from streammem-tiny"
        )
    return learner.start, learner.start.reranker


@torch.inference_mode()
def best_captions(
    learner: Learner,
    reranker: Reranker,
    pictures: PictureSet,
    drawn: Mapping[str, Sequence[DrawnCaption]],
) -> list[list[str]]:
    """Choose the captions of each picture that are worth to learn from, the best first.

    Args:
        learner: its keys judge.
        reranker: see ``CaptionJudge``.
        pictures: training pictures.
        drawn: captions of pictures, by name.
    """
    judge = CaptionJudge(pictures, reranker)
    sentences = learner.backbones.sentences()
    own = [list({c.text: c for c in drawn.get(name, ())}.values()) for name in pictures.names]
    todo = [i for i, captions in enumerate(own) if captions]
    kept: list[list[str]] = [[] for _ in own]
    for begin in tqdm(range(0, len(todo), JUDGED_TOGETHER), desc="captions judged"):
        block = todo[begin : begin + JUDGED_TOGETHER]
        texts = list({one.text for i in block for one in own[i]})
        meanings = sentences.encode(texts).to(learner.device)
        key_of = dict(zip(texts, learner.text_key(meanings).cpu().numpy(), strict=True))
        seen = learner.picture_key(pictures.views(block, [WHOLE] * len(block))).cpu().numpy()
        for i, key in zip(block, seen, strict=True):
            worths = judge.worths(i, own[i], np.stack([key_of[c.text] for c in own[i]]), key)
            order = np.argsort(-worths, kind="stable")[:KEPT]
            least = max(worths.max() - MARGIN, np.finfo(worths.dtype).min)  # not -inf
            kept[i] = [own[i][j].text for j in order if worths[j] >= least]
    counts = [len(of_picture) for of_picture in kept if of_picture]
    log.info("%d captions of %d pictures are worth to learn from", sum(counts), len(counts))
    return kept


class SelfTrainingStage:
    """Trains the LoRA on captions that the model has drawn itself; the bridge is frozen.

    Args:
        bridge: makes the tokens of every picture once.
        language: its LoRA, already added, is trained in place.
        pictures: training pictures.
        kept: the captions to learn of each; those without any are left out.
        validation: captioned greedily in ``evaluate``.
        batch: pictures a step.

    Raises:
        DatasetError: no caption was kept.
    """

    name = "self-training"

    def __init__(
        self,
        bridge: MemoryBridge,
        language: CausalLanguageModel,
        pictures: PictureSet,
        kept: Sequence[Sequence[str]],
        validation: PictureSet,
        *,
        batch: int = 32,
    ) -> None:
        self.bridge, self.language, self.validation, self.batch = (
            bridge,
            language,
            validation,
            batch,
        )
        chosen = [i for i, captions in enumerate(kept) if captions]
        if not chosen:
            raise DatasetError("self-training: no caption that was drawn is worth to learn from")
        self._pictures = pictures.select(chosen)
        self._kept = [kept[i] for i in chosen]
        self._tokens = tokens_of(bridge, self._pictures)
        worded = [
            bool(captions) and not made
            for captions, made in zip(self._pictures.captions, self._pictures.made, strict=True)
        ]
        listed = np.flatnonzero(~np.array(worded)), np.flatnonzero(worded)
        self._pools = [pool for pool in listed if len(pool)]
        self._prefix = language.ids(language.chat_prefix)
        self._instruction = language.ids(CAPTION_INSTRUCTION + language.chat_suffix)
        self.module = nn.ModuleDict({"lora": lora_parameters(language)})

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Cross-entropy of a kept caption of each of a batch of pictures."""
        # Of an odd batch the one left over is of either kind, by chance.
        listed = int(self.batch * LISTED_SHARE + rng.random())
        counts = [listed, self.batch - listed] if len(self._pools) == 2 else [self.batch]
        chosen = np.concatenate(
            [
                rng.choice(pool, min(count, len(pool)), replace=False)
                for pool, count in zip(self._pools, counts, strict=True)
            ]
        )
        views = (rng.random(len(chosen)) < MIRRORED_SHARE) * (self._tokens.shape[1] > 1)
        visual = self._visual(torch.from_numpy(self._tokens[chosen, views.astype(int)]))
        self.language.model.train(self.module.training)  # the adapter's dropout
        rows = [self._row(self._kept[i][int(rng.integers(len(self._kept[i])))]) for i in chosen]
        return reply_losses(
            self.language, rows, visual, prefix=self._prefix, width=ROW_WIDTH
        ).mean()

    def _row(self, caption: str) -> BranchedPrompt:
        return caption_prompt(
            self._instruction, [[*self.language.ids(caption), self.language.stop_id]]
        )

    @torch.no_grad()
    def _visual(self, tokens: Tensor) -> Tensor:
        return self.bridge.to_language(tokens.float().to(self._pictures.device))

    def evaluate(self) -> dict[str, float]:
        """CIDEr-D of greedy captions against the validation pictures' own."""

        def encode(patches: Tensor, times: Tensor) -> Tensor:
            return self.bridge.to_language(self.bridge.encode(patches, times))

        def sample(visual: Tensor, count: int, temperature: float) -> list[list[list[int]]]:
            return sample_captions(self.language, visual, count, temperature=temperature)

        return greedy_caption_figures(self.language, self.validation, encode, sample)
