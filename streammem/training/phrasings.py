"""Questions with their operator and anchors, made from captions by a grammar of phrasings.

    question = draw_question(anchors_of(["A dog is running on grass."]), rng)
    question.operator  # 'when'

Phrasings of ``HELD_OUT`` and captions of validation pictures are for the test figure only.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from streammem.models.tiny.questions import Operator, Span

# Anchors stand in brackets. {np} a thing, {s3} "the dog runs", {sing} "the dog running", {sis} "the
# dog is running", {sbase} "the dog run", {vbase} "run", {ving} "running".
PHRASINGS: dict[Operator, tuple[str, ...]] = {
    "describe": (
        "What is [{np}] doing?", "What color is [{np}]?", "What is [{np}] wearing?",
        "Who is [{ving}]?", "Where is [{np}]?", "Describe [{np}].", "Why is [{sing}]?",
        "What kind of place is it?", "How many people are there?", "Tell me about [{np}].",
        "What did [{np}] look like?", "What happened?", "What is this video about?",
        "What is next to [{np}]?", "What is [{np}] holding?", "How is the weather?",
        "What was [{np}] doing?", "Who was with [{np}]?", "How many of [{np}] are there?",
        "Where was [{np}] standing?", "What is [{np}]?", "What does [{np}] hold in its hands?",
        "How does [{np}] look?", "Which animals can be seen?", "What is behind [{np}]?",
        "What are they doing?", "What are people doing with [{np}]?", "How did [{sbase}]?",
        "What did [{np}] do?", "What do you see with [{np}]?", "Which clothes did [{np}] have on?",
    ),
    "when": (
        "When does [{sbase}]?", "When did [{sbase}]?", "When is [{sing}]?", "When was [{sing}]?",
        "At what time does [{sbase}]?", "When do I see [{np}]?", "When was [{np}] there?",
        "Show me when [{s3}].", "Find the moment when [{s3}].", "At which point does [{sbase}]?",
        "What time was it when [{s3}]?", "When does [{np}] appear?", "When can I see [{np}]?",
        "Where in the video does [{sbase}]?", "When did you see [{sing}]?", "When was [{np}]?",
        "Tell me the time at which [{s3}].", "When did they [{vbase}]?", "When did [{np}] come?",
        "At what point is there [{np}]?", "Give me the times of [{ving}].",
        "When is [{np}] shown?", "When do they start [{ving}]?",
        "Where can I find [{sing}] in the recording?",
    ),
    "exists": (
        "Is there [{np}]?", "Was there [{np}]?", "Did [{sbase}]?", "Does [{sbase}]?",
        "Have you seen [{np}]?", "Did you see [{sing}]?", "Is [{sing}]?", "Was [{sing}]?",
        "Does [{np}] appear?", "Can [{np}] be seen?", "Has [{np}] been here?",
        "Was [{np}] in the video?", "Did anyone [{vbase}]?", "Is anybody [{ving}]?",
        "Is there any sign of [{np}]?", "Did you notice [{np}]?", "Was anyone [{ving}]?",
        "Do you see [{np}]?", "Does anyone [{vbase}]?", "Is [{np}] visible?", "Any [{np}]?",
        "Did [{np}] come by?", "Was there ever [{np}]?", "Are there [{np}]?", "Were there [{np}]?",
        "Is there [{sing}]?", "Was there [{sing}] at some point?", "Does the film show [{sing}]?",
        "Has [{sing}] ever been seen?", "Is there [{sing}] at any time?",
    ),
    "first": (
        "When does [{sbase}] for the first time?", "When was the first time [{s3}]?",
        "When did I first see [{np}]?", "When does [{np}] first appear?",
        "When do we first see [{np}]?", "What was the first moment with [{np}]?",
        "First appearance of [{np}]?", "When did [{np}] show up first?", "What happened first?",
        "What was the first thing you saw?", "Where did you first see [{np}]?",
        "When is [{sing}] for the first time?", "The first time that [{s3}]?",
        "When did someone first [{vbase}]?", "When was [{np}] first here?",
        "When was [{ving}] first seen?", "Show the first scene with [{np}].", "What comes first?",
        "When did you notice [{np}] for the first time?",
        "When did it show [{sing}] for the first time?",
    ),
    "last": (
        "When did I last see [{np}]?", "Where did I last see [{np}]?",
        "When was the last time [{s3}]?", "When does [{sbase}] for the last time?",
        "When did [{np}] last appear?", "What was the last thing you saw?",
        "Last appearance of [{np}]?", "What happened last?", "When is [{sing}] for the last time?",
        "When was [{np}] last seen?", "The last time that [{s3}]?",
        "Where did I leave [{np}] last?", "When did someone last [{vbase}]?",
        "Show the last scene with [{np}].", "When was [{ving}] last seen?",
        "What was the last moment with [{np}]?", "When did you see [{np}] for the last time?",
        "When was [{np}] here last?",
        "When did it show [{sing}] for the last time?",
    ),
    "before": (
        "What happened before [{s3}]?", "What came right before [{ving}]?",
        "What was going on before [{sing}]?", "What do I see just before [{np}] appears?",
        "Before [{s3}], what happened?", "What did they do before [{ving}]?",
        "What preceded [{np}]?", "What happens before [{np}]?",
        "What was there before [{np}] came?", "And before [that]?",
        "What is shown immediately before [{np}]?", "Who was here before [{np}]?",
        "What did he do before he [{vbase}]?", "What was she doing before [{ving}]?",
        "And before [it]?", "What comes before [{sing}]?", "Describe what happened before [{np}].",
    ),
    "after": (
        "What happened after [{s3}]?", "What came right after [{ving}]?",
        "What happens after [{sing}]?", "What was going on after [{np}] appeared?",
        "After [{s3}], what happened?", "And after [that]?", "What did they do after [{ving}]?",
        "What follows [{np}]?", "What happens next after [{np}]?",
        "What was there after [{np}] left?", "What is shown immediately after [{np}]?",
        "And after [it]?", "Who came after [{np}]?", "What was she doing after [{ving}]?",
        "What did he do after [{ving}]?", "What went in after [{np}]?",
        "Describe what happened after [{np}].", "What happened after [this]?",
        "What did it show after [{sing}]?", "What was to see after [{sing}]?",
    ),
    "how often": (
        "How often does [{sbase}]?", "How many times did [{sbase}]?", "How often was [{np}] seen?",
        "Count the times [{s3}].", "How often do I see [{np}]?", "How many times is there [{np}]?",
        "How often did someone [{vbase}]?", "How many times was [{np}] there?",
        "How often is [{sing}]?", "On how many occasions did [{sbase}]?",
        "How many times do they [{vbase}]?", "How many times does [{np}] appear?",
        "Count how often [{s3}].", "How often did [{np}] come?",
        "How many times can one see [{sing}]?", "Tell me how many times [{s3}].",
        "How often was [{sing}]?",
    ),
    "how long": (
        "How long does [{sbase}]?", "How long did [{sbase}]?", "For how long was [{np}] there?",
        "How long is [{sing}]?", "How many minutes did [{sbase}]?", "How long did [{np}] stay?",
        "How much time did they spend [{ving}]?", "What is the duration of [{sing}]?",
        "How long was [{np}] visible?", "How long do they [{vbase}]?",
        "For how long does [{sbase}]?", "How many seconds is [{np}] shown?",
        "How long did it take to [{vbase}]?", "How long was [{sing}]?",
        "How long can I see [{np}]?", "How much time is there with [{np}]?",
        "How long did [{ving}] take?",
    ),
    "between": (
        "What happened between [{np}] and [{np}]?", "What happened between [{sing}] and [{sing}]?",
        "What was going on between [{ving}] and [{ving}]?",
        "Between [{np}] and [{np}], what happened?", "How long was it between [{np}] and [{np}]?",
        "What happened after [{s3}] and before [{s3}]?",
        "How much time passed between [{ving}] and [{ving}]?",
        "What came between [{np}] and [{np}]?",
        "What is there between the moment [{s3}] and the moment [{s3}]?",
        "What did they do between [{ving}] and [{ving}]?",
        "What was shown between [{sing}] and [{np}]?", "What lies between [{np}] and [{sing}]?",
        "How long between [{ving}] and [{np}]?",
    ),
    "now": (
        "What is happening now?", "What do you see right now?", "What is [{np}] doing now?",
        "Is [{np}] there at the moment?", "What is going on currently?",
        "Describe the current scene.", "What is on the screen right now?",
        "What is in front of the camera at this moment?", "Who is there now?",
        "Is [{sing}] right now?", "Where is [{np}] now?", "What can you see now?",
        "What is being shown at the moment?", "Is there [{np}] now?",
        "Do you see [{np}] right now?", "What is [{np}] doing at the moment?", "Now what?",
        "Is anybody [{ving}] now?", "Is there [{sing}] now?", "Is there [{np}] at the moment?",
        "Can I see [{sing}] right now?", "Is [{np}] in the picture right now?",
        "Does [{sbase}] right now?", "Is [{sing}] at the moment?", "Is [{np}] visible now?",
        "Are we seeing [{sing}] at the moment?", "Does the picture show [{sing}] now?",
        "Is there [{sing}] in view at this moment?", "Right now, is there [{sing}]?",
        "At the moment, do you see [{sing}]?", "Is there currently [{sing}]?",
        "Can [{np}] be seen at the moment?", "Is [{sing}] being shown now?",
        "Who is [{ving}] at the moment?", "What are they doing right now?",
        "Does the film show [{sing}] at this moment?", "Does it show [{np}] at the moment?",
        "Do I see [{sing}] at the moment?", "Is [{np}] being shown right now?",
    ),
}  # fmt: skip

HELD_OUT: dict[Operator, tuple[str, ...]] = {
    "describe": (
        "What does [{np}] look like?", "What is in the picture with [{np}]?",
        "Who is [{np}] with?", "What colour are the clothes of [{np}]?",
        "Can you describe what [{np}] is doing?", "Which sport is it?",
        "What sort of thing is [{np}]?", "Give me details about [{np}].",
    ),
    "when": (
        "At what moment does [{sbase}]?", "When exactly did [{sbase}]?",
        "When could I see [{np}]?", "Which part of the video shows [{sing}]?",
        "I want to know when [{s3}].", "What were the times of [{np}]?",
        "When was it that [{s3}]?", "When did [{np}] show up?",
    ),
    "exists": (
        "Could you spot [{np}]?", "Has anyone been [{ving}]?", "Did [{np}] show up?",
        "Is [{np}] anywhere in the recording?", "Did somebody [{vbase}]?", "Was [{np}] ever here?",
        "Were you able to see [{sing}]?", "Does the video show [{np}]?",
    ),
    "first": (
        "When did [{np}] appear for the first time?", "At what time was [{np}] first visible?",
        "What is the earliest time that [{s3}]?", "When did [{sbase}] first?",
        "How does it begin?", "First sighting of [{np}]?", "When do they first [{vbase}]?",
    ),
    "last": (
        "When did [{np}] appear for the last time?", "At what time was [{np}] last visible?",
        "What is the latest time that [{s3}]?", "When did [{sbase}] last?", "How does it end?",
        "Last sighting of [{np}]?", "Where was [{np}] last?", "Where have I put [{np}] last?",
    ),
    "before": (
        "What took place before [{s3}]?", "What was happening just before [{sing}]?",
        "What had they done before [{ving}]?", "Right before [{np}], what did you see?",
        "What led up to [{ving}]?", "What did I do before [{ving}]?",
        "Which scene is before [{np}]?",
    ),
    "after": (
        "What took place after [{s3}]?", "What was happening just after [{sing}]?",
        "Once [{s3}], what happens?", "Right after [{np}], what did you see?",
        "What is next after [{ving}]?", "What did I do after [{ving}]?",
        "Which scene is after [{np}]?",
    ),
    "how often": (
        "How frequently does [{sbase}]?", "How many times have you seen [{np}]?",
        "What is the number of times [{s3}]?", "How often has anyone been [{ving}]?",
        "How many appearances does [{np}] make?", "How often did I [{vbase}]?",
    ),
    "how long": (
        "For how many minutes is [{sing}]?", "How long have they been [{ving}]?",
        "How much time does [{np}] spend there?", "What was the length of [{sing}]?",
        "How long could one see [{np}]?", "How long did somebody [{vbase}]?",
        "How long is [{np}] in view?",
    ),
    "between": (
        "What took place between [{sing}] and [{sing}]?",
        "In between [{np}] and [{np}], what did you see?",
        "How many minutes are there between [{ving}] and [{ving}]?",
        "What did she do between the time [{s3}] and the time [{s3}]?",
        "What is between [{ving}] and [{np}]?",
    ),
    "now": (
        "What is going on at this very moment?", "What does the camera see now?",
        "Who do you see now?", "Is [{np}] here right now?", "What is [{np}] currently doing?",
        "Can you see [{np}] now?", "What do you see at present?", "Is [{sing}] at this instant?",
        "Does [{np}] appear in the current picture?", "Does anyone see [{sing}] just now?",
    ),
}  # fmt: skip

WRAPPERS = (
    "{}",
    "{}",
    "{}",
    "{}",
    "Please tell me: {}",
    "Hey, {}",
    "OK, {}",
    "And {}",
    "So {} Thanks.",
)
HELD_OUT_WRAPPERS = ("{}", "{}", "{}", "Quick question: {}", "Listen, {}")
ARTICLES = ("a", "the", "the", "my", "that", "our")

_SUBJECT = r"(?P<np>(?:an?|the|two|three|some|several|one) (?:[a-z-]+ ){1,7}?)(?:is|are) "
_ACTION = re.compile(_SUBJECT + r"(?P<ing>[a-z]{2,}ing)(?P<rest>(?: [a-z-]+){0,6})")
_THING = re.compile(r"\b(?:with|in|on|near|holding|of|at|by) ((?:an?|the) (?:[a-z]+ )?[a-z]{3,})\b")
_OPEN = (
    "a an the of in on to at by his her its their from for into down up through during and or who "
    "some very is are other two with near while as"
)
_BREAK = re.compile(
    rf" (?:and|while|as|who|which|that|but|with)\b.*| (?:{'|'.join(_OPEN.split())})$"
)


class QuestionExample(NamedTuple):
    """A question with its operator and the spans of its anchors, in order."""

    text: str
    operator: Operator
    anchors: tuple[Span, ...]


class Anchors(NamedTuple):
    """The things and actions that questions are about.

    Attributes:
        things: noun phrases.
        actions: (who, base form, -ing form, the rest with its leading space or empty).
    """

    things: tuple[str, ...]
    actions: tuple[tuple[str, str, str, str], ...]


def anchors_of(captions: Sequence[str]) -> Anchors:
    """Extract from captions the things and actions that a question could be about.

    A verb's base form is the one whose third person occurs in the captions most often.
    """
    texts = [re.sub(r"[^a-z\- ]", "", caption.lower()).strip() for caption in captions]
    words = Counter(word for text in texts for word in text.split())
    things, actions = set[str](), set[tuple[str, str, str, str]]()
    for text in texts:
        things.update(_cut(found[1]) for found in _THING.finditer(text))
        action = _ACTION.match(text)
        if not action:
            continue
        who = action["np"].strip()
        things.add(who)
        if base := _base(action["ing"], words):
            actions.add((who, base, action["ing"], _cut(action["rest"])))
    # Captions that fit no pattern become things, so that there is something to ask about.
    return Anchors(tuple(sorted(things)) or tuple(sorted(set(texts))), tuple(sorted(actions)))


def draw_question(
    anchors: Anchors, rng: np.random.Generator, *, held_out: bool = False
) -> QuestionExample:
    """Draw a question.

    Args:
        anchors: at least one thing.
        rng: draws operator (all alike), phrasing, anchors and wording.
        held_out: use phrasings that no training question has.
    """
    phrasings = HELD_OUT if held_out else PHRASINGS
    operator = tuple(phrasings)[rng.integers(len(phrasings))]
    while True:
        phrasing = str(rng.choice(phrasings[operator]))
        if anchors.actions or not re.search(r"\{[sv]", phrasing):
            break
    filled = re.sub(r"\{(\w+)\}", lambda slot: _fill(slot[1], anchors, rng), phrasing)
    wrapper = str(rng.choice(HELD_OUT_WRAPPERS if held_out else WRAPPERS))
    if rng.random() < 0.3:
        filled = filled.rstrip("?.")
    pieces = re.split(r"[\[\]]", wrapper.format(filled))  # every second one is an anchor
    starts = np.cumsum([0, *map(len, pieces)]).tolist()
    spans = tuple((starts[i], starts[i + 1]) for i in range(1, len(pieces), 2))
    return QuestionExample("".join(pieces), operator, spans)


def _fill(slot: str, anchors: Anchors, rng: np.random.Generator) -> str:
    if slot == "np":
        return _determined(str(rng.choice(anchors.things)), rng)
    who, base, ing, rest = anchors.actions[rng.integers(len(anchors.actions))]
    who = _determined(who, rng)
    many = who.split()[0] in ("two", "three", "some", "several")
    forms = {
        "s3": f"{who} {base if many else _third(base)}{rest}",
        "sing": f"{who} {ing}{rest}",
        "sis": f"{who} {'are' if many else 'is'} {ing}{rest}",
        "sbase": f"{who} {base}{rest}",
        "vbase": f"{base}{rest}",
        "ving": f"{ing}{rest}",
    }
    return forms[slot]


def _determined(thing: str, rng: np.random.Generator) -> str:
    first, _, rest = thing.partition(" ")
    if first not in ("a", "an", "the") or not rest:
        return thing
    article = str(rng.choice(ARTICLES))
    return f"{first if article == 'a' else article} {rest}"


def _base(ing: str, words: Counter[str]) -> str | None:
    stem = ing[:-3]
    forms = [stem, f"{stem}e", *([stem[:-1]] if stem[-1:] == stem[-2:-1] else [])]
    seen = {form: words[_third(form)] for form in forms}
    best = max(forms, key=lambda form: seen[form])
    return best if seen[best] else None


def _third(base: str) -> str:
    if re.search(r"(s|x|z|ch|sh|o)$", base):
        return f"{base}es"
    return f"{base[:-1]}ies" if re.search(r"[^aeiou]y$", base) else f"{base}s"


def _cut(rest: str) -> str:
    """Remove a trailing clause, and trailing words that leave the phrase incomplete."""
    before = None
    while before != rest:
        before, rest = rest, _BREAK.sub("", rest)
    return rest
