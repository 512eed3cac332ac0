"""Answer stage: a LoRA of its own learns people's questions, as ``ask`` asks them.

    stage = AnswerStage(bridge, language, pictures, validation, captions=captions, named=named)

A prompt is what ``VideoModel.answer_prompt`` makes: passages in time order, each a stamp, a
picture's tokens, a caption and names of what it shows, then the question. The bridge is frozen, so
that memories stay readable, and the LoRA that captions is another one, so that captions stay as
they are to the letter.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from streammem.errors import DatasetError
from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.tiny.bridge import MemoryBridge
from streammem.training.captions import (
    VISUAL_TOKEN,
    BranchedPrompt,
    has_fast_bfloat16,
    pack,
    packed_losses,
    takes_mask,
)
from streammem.training.lora import lora_parameters
from streammem.training.nouns import plural
from streammem.training.pictures import WHOLE, PictureSet
from streammem.training.questions import (
    NO,
    YES,
    QuestionRecord,
    number_question,
    presence_question,
    questions_from_captions,
)
from streammem.training.reward import sample_captions
from streammem.training.things import PRESENT, tokens_of
from streammem.types import clock

ROW_WIDTH = 448  # columns of a row that several prompts share
QUESTIONS_A_PICTURE = 3  # questions about one picture in a step
MEASURED = 96  # validation questions
# How often a prompt is of each kind; kinds that the data do not have are left out.
KIND_SHARES = {"people": 0.65, "captions": 0.13, "things": 0.12, "unseen": 0.05, "scene": 0.05}
OTHERS = (0.8, 0.08, 0.06, 0.06)  # probabilities of none to three other passages beside
BALANCE = 0.25  # an answer that n questions have is drawn in proportion to n^(1 - BALANCE)
SHARE_CAPTIONED, SHARE_NAMED = 0.75, 0.9  # of the passages, with a caption and with names
PLAIN = 0.1  # of the questions, in small letters
NOT_SEEN = "I can't see that."
SCENE_QUESTIONS = (
    "What is happening?", "What do you see?", "What is going on here?", "What was that?",
    "What does the picture show?",
)  # fmt: skip
SCENE_S = (2.0, 30.0)
STREAM_S = 2 * 3600.0  # longest stream that passages come from
REDRAWS = 200  # of a batch of which no prompt has a question
SURE, COUNTABLE = 0.5, 6  # share of a thing that is asked about; most of one kind to count
COUNTS = ("One.", "Two.", "Three.", "Four.", "Five.", "Six.")


class QuestionsPrompt(NamedTuple):
    """A prompt with several questions.

    Attributes:
        pictures: shown, in time order; any one of them may be what is asked about.
        questions: with their answers.
    """

    pictures: tuple[int, ...]
    questions: tuple[QuestionRecord, ...]


def askable(pictures: PictureSet) -> dict[str, list[int]]:
    """Return which pictures people ask about, and of which their captions and lists let us ask.

    Raises:
        DatasetError: there is none.
    """
    kinds = {name for things in pictures.things for name, _ in things}
    pools = {
        "people": [i for i, questions in enumerate(pictures.questions) if questions],
        "captions": [i for i, of in enumerate(pictures.captions) if of and not pictures.made[i]],
        # That one thing is absent shows only beside another that is there.
        "things": [i for i, things in enumerate(pictures.things) if things and len(kinds) > 1],
    }
    if not any(pools.values()):
        raise DatasetError("answers: no picture of the data has questions, captions or a list")
    return pools


class AnswerStage:
    """Trains answers to questions of people, and to some made of captions and of lists.

    A question about a thing that another picture is known to lack is asked about that one too, and
    answered "I can't see that."; so rarely that what is shown is seldom refused.

    Args:
        bridge: frozen.
        language: its LoRA, already added, is trained in place.
        pictures: training pictures.
        validation: for the figures.
        captions: the model's own, by picture of both sets, where it has captioned it.
        named: names that prompts show of each picture, by its name; empty shows none.
        batch: prompts a step.

    Raises:
        DatasetError: the data have no question of any kind.
    """

    name = "answers"

    def __init__(
        self,
        bridge: MemoryBridge,
        language: CausalLanguageModel,
        pictures: PictureSet,
        validation: PictureSet,
        *,
        captions: Mapping[str, str],
        named: Mapping[str, Sequence[str]],
        batch: int = 24,
    ) -> None:
        self.bridge, self.language, self.batch = bridge, language, batch
        self.pictures, self.validation = pictures, validation
        self._captions, self._named = captions, named
        self._tokens = tokens_of(bridge, pictures)
        self._prefix = language.ids(language.chat_prefix)
        self._suffix = language.ids(language.chat_suffix)
        self.module = nn.ModuleDict({"lora": lora_parameters(language)})
        # 1. What can be asked of which picture.
        self._pools = askable(pictures)
        asked = self._pools["people"]
        self._shows = [{name for name, _ in things} for things in pictures.things]
        self._things = sorted(set().union(*self._shows))
        self._pools["unseen"] = [i for i in asked if self._about_things(i)]
        self._pools["scene"] = [i for i, name in enumerate(pictures.names) if name in captions]
        self._kinds = [kind for kind in KIND_SHARES if self._pools[kind]]
        # 2. Answers such as "yes" and "two" are common: rarer ones are drawn more often.
        counts = Counter(q.answer for i in asked for q in pictures.questions[i])
        rare = [max(counts[q.answer] ** -BALANCE for q in pictures.questions[i]) for i in asked]
        self._chances = np.array(rare) / max(sum(rare), 1e-9)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        asked = self._draw_batch(rng)
        self.language.model.train(self.module.training)  # the adapter's dropout
        rows = [self._row(self.pictures, one, rng) for one in asked]
        shown = [i for one in asked for i in one.pictures]
        views = rng.integers(self._tokens.shape[1], size=len(shown))
        counts = [len(one.pictures) for one in asked]
        return self._losses(rows, self._tokens[shown, views], counts).mean()

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Cross-entropy of people's answers, with their picture and with another one."""
        self.language.model.eval()
        asked = [i for i, of in enumerate(self.validation.questions) if of][:MEASURED]
        if len(asked) < 2:
            return {}
        chosen = self.validation.select(asked)
        tokens = tokens_of(self.bridge, chosen, views=1)[:, WHOLE]
        figures = {}
        for name, step in (("val_loss", 0), ("val_loss_other_picture", 1)):
            rng, losses = np.random.default_rng(0), []
            for i, questions in enumerate(chosen.questions):
                shown = (i + step) % len(chosen)
                row = self._row(
                    chosen, QuestionsPrompt((shown,), tuple(questions[:1])), rng, whole=True
                )
                losses += self._losses([row], tokens[[shown]], [1]).tolist()
            figures[name] = round(float(np.mean(losses)), 4)
        return figures

    def draw(self, rng: np.random.Generator) -> QuestionsPrompt | None:
        """Draw one prompt; None where the drawn picture has no question of the drawn kind."""
        shares = np.array([KIND_SHARES[kind] for kind in self._kinds])
        kind = self._kinds[int(rng.choice(len(shares), p=shares / shares.sum()))]
        pool = self._pools[kind]
        if kind == "people":
            picture = pool[int(rng.choice(len(pool), p=self._chances))]
            others = rng.integers(len(self.pictures), size=int(rng.choice(4, p=OTHERS)))
            questions = self.pictures.questions[picture]
            order = rng.permutation(len(questions))[:QUESTIONS_A_PICTURE]
            shown = [int(i) for i in rng.permutation([picture, *others])]
            return QuestionsPrompt(tuple(shown), tuple(questions[i] for i in order))
        picture = pool[int(rng.integers(len(pool)))]
        made = self._questions(kind, picture, rng)
        if kind == "unseen":
            about = self._about_things(picture)
            question, names = about[int(rng.integers(len(about)))]
            picture = int(rng.integers(len(self.pictures)))
            there = self._shows[picture]
            made = [QuestionRecord(question, NOT_SEEN)] if there and not there & names else []
        return QuestionsPrompt((picture,), tuple(made)) if made else None

    def _draw_batch(self, rng: np.random.Generator) -> list[QuestionsPrompt]:
        """Draw prompts: fewer than a batch where some pictures have no question, at least one."""
        for _ in range(REDRAWS):
            if asked := [made for _ in range(self.batch) if (made := self.draw(rng))]:
                return asked
        raise DatasetError("answers: hardly any picture of the data has a question; add data")

    def _questions(self, kind: str, picture: int, rng: np.random.Generator) -> list[QuestionRecord]:
        """Make questions of a kind that are not people's."""
        if kind == "captions":
            return questions_from_captions(self.pictures.captions[picture], rng)
        if kind == "scene":
            question = SCENE_QUESTIONS[int(rng.integers(len(SCENE_QUESTIONS)))]
            return [QuestionRecord(question, self._captions[self.pictures.names[picture]])]
        if kind != "things":
            return []
        things = self.pictures.things[picture]
        sure = sorted({name for name, share in things if share >= SURE})
        absent = [name for name in self._things if name not in self._shows[picture]]
        questions = []
        for names, answer in ((sure, YES), (absent, NO)):
            if names:
                name = names[int(rng.integers(len(names)))]
                questions.append(QuestionRecord(presence_question(name), answer))
        counts = Counter(name for name, _ in things)
        doubtful = {name for name, share in things if share < PRESENT}
        several = [n for n in sure if 1 < counts[n] <= COUNTABLE and n not in doubtful]
        if several:
            name = several[int(rng.integers(len(several)))]
            answer = COUNTS[counts[name] - 1]
            questions.append(QuestionRecord(number_question(plural(name)), answer))
        return questions

    def _about_things(self, picture: int) -> list[tuple[str, set[str]]]:
        """List people's questions that name things on the picture's list, with these names.

        Whether a thing is there, and how many, can be answered of any picture.
        """
        found = []
        for question, answer in self.pictures.questions[picture]:
            asked = f" {question.lower().strip(' ?')} "
            names = {n for n in self._shows[picture] if f" {n} " in asked or f" {n}s " in asked}
            open_question = answer not in (YES, NO) and not asked.startswith(" how many")
            if names and open_question:
                found.append((question, names))
        return found

    def _row(
        self,
        pictures: PictureSet,
        asked: QuestionsPrompt,
        rng: np.random.Generator,
        *,
        whole: bool = False,
    ) -> BranchedPrompt:
        """Make the prompt of drawn times; ``whole`` shows all captions and names there are."""
        starts = np.sort(rng.uniform(0, rng.uniform(60, STREAM_S), len(asked.pictures)))
        shared = list[int]()
        for start, picture in zip(starts, asked.pictures, strict=True):
            name = pictures.names[picture]
            caption = self._captions.get(name) if whole or rng.random() < SHARE_CAPTIONED else None
            names = self._named.get(name, ()) if whole or rng.random() < SHARE_NAMED else ()
            end = float(start + rng.uniform(*SCENE_S))
            shared += self.passage(float(start), end, caption, names)
        branches = []
        for question, answer in asked.questions:
            plain = not whole and rng.random() < PLAIN
            text = question.lower().rstrip("?") if plain else question
            reply = [*self.language.ids(answer), self.language.stop_id]
            branches.append(([*self.language.text_ids(text), *self._suffix], reply))
        return BranchedPrompt(shared, branches)

    def passage(
        self, start: float, end: float, caption: str | None, names: Sequence[str]
    ) -> list[int]:
        """Return a passage's token ids, ``VISUAL_TOKEN`` in the place of each visual token."""
        words = [caption] if caption else []
        words += [f"({', '.join(names)})"] if names else []
        after = f" {' '.join(words)}\n" if words else "\n"
        visual = [VISUAL_TOKEN] * self.bridge.config.memory_tokens
        return [
            *self.language.text_ids(f"[{clock(start)}-{clock(end)}] "),
            *visual,
            *self.language.text_ids(after),
        ]

    def _losses(
        self, rows: Sequence[BranchedPrompt], tokens: np.ndarray, counts: Sequence[int]
    ) -> Tensor:
        """Cross-entropy [N] of every token of the answers.

        Args:
            rows: one a prompt.
            tokens: [B, M, D] of all pictures shown, in the order of the prompts.
            counts: pictures of each prompt.
        """
        masked, width = takes_mask(self.language), ROW_WIDTH
        if not masked:  # then each question has a row of its own
            ends = np.cumsum(counts)
            places = [(i, branch) for i, row in enumerate(rows) for branch in row.branches]
            order = [k for i, _ in places for k in range(ends[i] - counts[i], ends[i])]
            tokens, width = tokens[order], 0
            rows = [BranchedPrompt(rows[i].shared, [branch]) for i, branch in places]
        device = self.pictures.device
        with torch.no_grad():
            visual = self.bridge.to_language(torch.from_numpy(tokens).float().to(device))
        kind = torch.device(device).type
        fast = torch.autocast(kind, torch.bfloat16) if has_fast_bfloat16(kind) else nullcontext()
        with fast:
            packed = pack(rows, prefix=self._prefix, num_visual=0, width=width)
            return packed_losses(self.language, packed, visual, masked=masked)


@torch.inference_mode()
def own_captions(
    bridge: MemoryBridge, language: CausalLanguageModel, pictures: PictureSet
) -> dict[str, str]:
    """Caption every picture that people ask about, greedily, by its name."""
    asked = pictures.select([i for i, of in enumerate(pictures.questions) if of])
    captions = {}
    with tqdm(total=len(asked), desc="captions of asked pictures") as bar:
        for block in np.array_split(np.arange(len(asked)), max(1, len(asked) // 16)):
            if not len(block):
                continue
            visual = bridge.to_language(bridge.encode(*asked.whole(block)))
            replies = sample_captions(language, visual, 1, temperature=0.0)
            for i, (ids,) in zip(block, replies, strict=True):
                text = language.tokenizer.decode(ids, skip_special_tokens=True).strip()
                captions[asked.names[int(i)]] = text
            bar.update(len(block))
    return captions
