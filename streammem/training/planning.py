"""Planning stage: a recurrent model learns which action comes next, from logs of actions.

    logs = read_logs(folder)                                # of every video, by time
    stage = PlanningStage(PlanningAdapter(read_words(folder)), logs["train"], logs["validation"])

Logs are EPIC-KITCHENS': who did what with what, in order. They are split by participant.
"""

import ast
import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.errors import DatasetError
from streammem.models.tiny.planning import HISTORY, Action, ActionWords, PlanningAdapter

VERBS, NOUNS = "EPIC_100_verb_classes.csv", "EPIC_100_noun_classes_v2.csv"
LOGS = ("epic_kitchens_train.csv", "epic_kitchens_55_train.csv")  # the first counts where both do
TERMS = "CC BY-NC 4.0, as EPIC-KITCHENS, whose training logs it was trained on"
FORGOTTEN = 0.1  # share of past actions that training hides
# Every fifth participant, in the order of their names, from the third and the fifth on.
SPLITS = {2: "test", 4: "validation"}
FOLD = 5


@dataclass(frozen=True, eq=False)
class ActionLog:
    """The actions of one video, in order: [T, 2] int64, verb and noun."""

    participant: str
    video: str
    actions: np.ndarray


def read_words(folder: Path) -> ActionWords:
    """Read the class tables.

    Raises:
        DatasetError: a table is missing or of another form.
    """
    return ActionWords(_classes(folder / VERBS), _classes(folder / NOUNS))


def read_logs(folder: Path) -> dict[str, list[ActionLog]]:
    """Read both logs as one, by split: ``train``, ``validation`` and ``test``.

    A video that is in both is taken from the first. Verbs and nouns of the second have other class
    numbers, so that they are looked up by their words; an action whose words the tables lack is
    left out.

    Raises:
        DatasetError: a file is missing or of another form.
    """
    words = read_words(folder)
    verbs = {form: n for n, forms in enumerate(words.verbs.values()) for form in forms}
    nouns = {form: n for n, forms in enumerate(words.nouns.values()) for form in forms}
    videos: dict[str, tuple[str, list[tuple[str, Action]]]] = {}
    for name in LOGS:
        found: dict[str, list[tuple[str, Action]]] = defaultdict(list)
        of: dict[str, str] = {}
        for row in _rows(folder / name):
            try:
                verb, noun = verbs.get(row["verb"]), nouns.get(row["noun"])
                of[row["video_id"]] = row["participant_id"]
                if verb is not None and noun is not None:
                    # Stamps have two digits an hour, so that they sort as text.
                    found[row["video_id"]].append((row["start_timestamp"], Action(verb, noun)))
            except KeyError as error:
                raise DatasetError(f"{folder / name}: has no column {error}") from error
        for video, actions in found.items():
            videos.setdefault(video, (of[video], sorted(actions)))
    people = sorted({person for person, _ in videos.values()})
    split = {person: SPLITS.get(n % FOLD, "train") for n, person in enumerate(people)}
    logs: dict[str, list[ActionLog]] = {"train": [], "validation": [], "test": []}
    for video, (person, stamped) in sorted(videos.items()):
        ordered = np.array([action for _, action in stamped], np.int64)
        logs[split[person]].append(ActionLog(person, video, ordered))
    return logs


class PlanningStage:
    """Trains a ``PlanningAdapter`` on stretches of logs.

    Args:
        adapter: trained in place.
        logs: of training.
        validation: for the figures.
        batch: stretches of ``HISTORY`` actions a step.
        smoothing: of the labels.
    """

    name = "planning"

    def __init__(
        self,
        adapter: PlanningAdapter,
        logs: Sequence[ActionLog],
        validation: Sequence[ActionLog] = (),
        *,
        batch: int = 32,
        smoothing: float = 0.05,
    ) -> None:
        self.module: nn.Module = adapter
        self._adapter, self._batch, self._smoothing = adapter, batch, smoothing
        self._logs = [torch.from_numpy(log.actions) for log in logs]
        self._validation = [torch.from_numpy(log.actions) for log in validation]
        lengths = np.array([len(actions) for actions in self._logs], float)
        self._chances = lengths / lengths.sum()

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        rows = []
        for number in rng.choice(len(self._logs), self._batch, p=self._chances).tolist():
            actions = self._logs[number]
            first = int(rng.integers(0, max(1, len(actions) - HISTORY + 1)))
            rows.append(actions[first : first + HISTORY])
        actions = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
        real = actions[..., 0] >= 0
        seen = actions.clamp(min=0)
        # What is hidden becomes another action of the batch: a log may lack or mistake some.
        hidden = torch.from_numpy(rng.random(real.shape) < FORGOTTEN)
        others = seen[real][torch.from_numpy(rng.integers(0, int(real.sum()), real.shape))]
        states = self._adapter.states(torch.where(hidden[..., None], others, seen))[:, :-1]
        return self._losses(states[real], actions[real], self._smoothing)

    def _losses(self, states: Tensor, actions: Tensor, smoothing: float = 0.0) -> Tensor:
        verbs = self._adapter.verb_logits(states)
        nouns = self._adapter.noun_logits(states) + self._adapter.given[actions[:, 0]]
        return F.cross_entropy(verbs, actions[:, 0], label_smoothing=smoothing) + F.cross_entropy(
            nouns, actions[:, 1], label_smoothing=smoothing
        )

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Mean negative log-likelihood of an action of the validation logs, in nats."""
        total, count = 0.0, 0
        for actions in self._validation:
            states = self._adapter.states(actions[None])[0, :-1]
            total += float(self._losses(states, actions)) * len(actions)
            count += len(actions)
        return {"val_loss": total / count} if count else {}


def _classes(path: Path) -> dict[str, list[str]]:
    found = {}
    try:
        for row in _rows(path):
            forms = ast.literal_eval(row["instances"])
            found[row["key"]] = [str(form) for form in forms]
    except (KeyError, ValueError, SyntaxError, TypeError) as error:
        raise DatasetError(f"{path}: is no table of classes ({error})") from error
    return found


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
