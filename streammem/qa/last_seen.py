"""Questions of where a thing was left and whether something was done: the last sighting answers.

    asked = read_last_seen("Where did I put my cup?")             # thing "my cup", no action
    asked = read_last_seen("Did I turn off the stove?")           # action "turn off the stove"
    last_sighting_text(...)     # 'last seen 00:14.0-00:18.0, 2 min before the end, not seen since'

Rules for English; which rows show a phrase is decided in `memory/retrieval.py`. A picture shows
what is there, and rarely what was done to it: where only the thing was seen, that is the answer.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import NamedTuple

from streammem.memory.retrieval import Clip
from streammem.models.tiny.questions import PUNCTUATION
from streammem.qa.timeline import Appearance, clip_lines, length, span_text

MAX_WORDS = 6  # of a thing; a longer phrase asks for more than its place

_I = r"(?:i|we|you|he|she|they)"
_PLACED = (
    r"(?:put|leave|left|lay|laid|place|placed|set|drop|dropped|store|stored|hide|hid|hidden|park|"
    r"parked|forget|forgotten|lose|lost|(?:last )?(?:see|seen))"
)
_AFTER = r"(?: (?:last seen|last|again|gone|seen last))?"
_WHERE = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"where (?:did|have|has|had) {_I} (?:last )?{_PLACED}(?: down)? (?P<thing>.+?)(?: down)?"
        rf"{_AFTER}",
        rf"what (?:did|have|has) {_I} (?:do|done) with (?P<thing>.+?)",
        rf"where(?: is| are| was| were|['’]s) (?P<thing>.+?){_AFTER}",  # noqa: RUF001, as typed
    )
)  # fmt: skip
_DONE = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?:did|have|has|had) {_I} (?:already |ever |also )?(?:(?:remember|forget)(?:ed)? to |"
        r"forgotten to )?(?P<action>.+?)(?: (?:already|yet))?",
        r"do (?:i|we) (?:still )?(?:have|need) to (?P<action>.+?)",
    )
)
# These ask what was seen or said, which other readings answer.
_PERCEIVED = frozenset(
    "see seen saw notice noticed watch watched look looked hear heard find found say said mention "  # noqa: SIM905
    "mentioned tell told talk talked discuss discussed meet met go gone be been have had".split()
)
_POINTING = frozenset("it this that these those them he she they i we you there here now".split())  # noqa: SIM905
_BASE = {
    "taken": "take", "left": "leave", "fed": "feed", "given": "give", "made": "make", "done": "do",
    "brought": "bring", "eaten": "eat", "drunk": "drink", "written": "write", "paid": "pay",
    "sent": "send", "bought": "buy", "swept": "sweep",
}  # fmt: skip
_PARTICLE = r"(?: (?:off|on|up|down|out|in|away|back|over))?"
_THING = r"(?P<thing>(?:the|my|our|a|an|some|his|her|their) [\w' -]+?|[\w'-]+)"
_OBJECT = re.compile(rf"\w+{_PARTICLE} {_THING}{_PARTICLE}", re.IGNORECASE)


class LastSeenQuestion(NamedTuple):
    """A question of a last sighting.

    Attributes:
        thing: what is looked for.
        action: what may have been done to it, in words; empty where its place is asked for.
    """

    thing: str
    action: str = ""


def read_last_seen(question: str) -> LastSeenQuestion | None:
    """Read a question, without its time words; None where it asks for something else."""
    text = " ".join(question.split()).strip(PUNCTUATION)
    for pattern in _WHERE:
        if found := pattern.fullmatch(text):
            thing = found["thing"]
            return LastSeenQuestion(thing) if _is_thing(thing) else None
    for pattern in _DONE:
        if (found := pattern.fullmatch(text)) is None:
            continue
        verb, _, rest = found["action"].partition(" ")
        action = f"{_BASE.get(verb.lower(), verb)} {rest}".strip()
        thing = _OBJECT.fullmatch(action)
        if verb.lower() in _PERCEIVED or thing is None or not _is_thing(thing["thing"]):
            return None
        return LastSeenQuestion(thing["thing"], action)
    return None


def _is_thing(phrase: str) -> bool:
    words = phrase.lower().split()
    return (
        0 < len(words) <= MAX_WORDS
        and words[0] not in _POINTING
        and words[-1] not in _POINTING
        # "where is the man standing": what it does there is asked for, too
        and not (len(words) > 1 and words[-1].endswith("ing"))
    )


def last_sighting_text(
    asked: LastSeenQuestion,
    found: Sequence[Appearance],
    following: Sequence[Clip],
    captions: Mapping[int, str],
    *,
    seen_thing_only: bool,
    in_time: bool,
    is_newest: bool,
    age_s: float,
    named: bool,
    zone: tzinfo | None,
) -> str:
    """Write the last sighting as data.

    Args:
        asked: the question.
        found: appearances of the action or the thing, oldest first; none: not seen.
        following: scenes after the last of them.
        captions: of the last scene of the last one and of ``following``, by segment.
        seen_thing_only: they are of the thing, where an action is asked about.
        in_time: they lie in the time that is asked about, and not before it.
        is_newest: nothing was seen after the last one.
        age_s: seconds since it ended.
        named: name the source.
        zone: of wall-clock times; None is this computer's.

    Returns:
        For example ``last seen 00:14.0-00:18.0, 2 min before the end, not seen since: A cup.``
    """
    if not found:
        return f"not seen: {asked.action or asked.thing}"
    last = found[-1]
    entry = last.clips[-1].entry
    since = "in the newest scene"
    if not is_newest:
        ago = "ago" if entry.wall_start is not None else "before the end"
        since = f"{length(age_s)} {ago}, not seen since"
    text = f"last seen {span_text(entry, last.start, last.end, named, zone)}, {since}"
    if len(found) > 1 and in_time:
        text = f"{text} ({len(found)} times in all)"
    if seen_thing_only:
        text = f"not seen: {asked.action}; {asked.thing}: {text}"
    elif not in_time:
        text = f"not seen then; before that {text}"
    if caption := captions.get(entry.segment, "").replace("\n", " / "):
        text += f": {caption}"
    lines = clip_lines(following, captions)
    return "\n".join([text, *(["then:", *lines] if lines else [])])
