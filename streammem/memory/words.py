"""Words that two texts share: content words, brought to a common form.

    content_words("two dogs are running")              # {"dog", "run"}
    names("A man is riding a motorcycle.", content_words("a man rides a motorcycle"))   # True

English only, by rules; meaning is what keys are for.
"""

import re
from functools import lru_cache

# Words that carry no content of a description, and words of questions that a model without a
# question head leaves in.
STOP_WORDS = frozenset(
    "a an the of in on at to with and or by for from near into onto over under up down out off "  # noqa: SIM905
    "while as is are was were be being been am has have having had do does did his her its their "
    "my your our it he she they them there here this that these those who whose what which when "
    "where why how often long many much times time ever some any something someone somebody "
    "thing things i you we can could will would not no yes seen see saw show shows shown showing "
    "one two three four five six seven eight nine ten several few very".split()
)
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "mice": "mouse",
    "feet": "foot", "teeth": "tooth", "geese": "goose", "ran": "run", "swam": "swim", "sat": "sit",
    "rode": "ride", "ate": "eat", "eaten": "eat", "ridden": "ride", "lying": "lie",
    "wolves": "wolf", "calves": "calf", "leaves": "leaf", "shelves": "shelf", "stood": "stand",
    "knives": "knife", "held": "hold", "drove": "drive", "flew": "fly", "threw": "throw",
    "caught": "catch",
}  # fmt: skip
_VOWELS = frozenset("aeiouy")


def stem(word: str) -> str:
    """Bring a word to a form that its plural and its simple inflections share.

    The form need not be a word: ``riding``, ``rides`` and ``ride`` give ``rid``.
    """
    word = _IRREGULAR.get(word, word)
    if word.endswith("'s"):
        word = word[:-2]
    for ending in ("ing", "ed"):
        base = word[: -len(ending)]
        if word.endswith(ending) and len(base) >= 2 and _VOWELS & set(base):
            word = (
                base[:-1]
                if len(base) > 2 and base[-1] == base[-2] and base[-1] not in "lsz"
                else base
            )
            break
    else:
        if word.endswith("ies") and len(word) > 4:
            word = word[:-3] + "y"
        elif word.endswith(("ches", "shes", "sses", "xes", "zes")):
            word = word[:-2]
        elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
            word = word[:-1]
    # "ride", "riding" -> "rid"; "carry", "carries", "carried" -> "carri"
    word = word[:-1] if word.endswith("e") and len(word) > 3 else word
    return word[:-1] + "i" if word.endswith("y") and len(word) > 3 else word


@lru_cache(maxsize=8192)  # captions of a memory are compared with every question
def content_words(text: str) -> frozenset[str]:
    """Return the stems of a text's words that carry content; none of a text without such words."""
    words = re.findall(r"[^\W_]+(?:'s)?", text.lower())
    return frozenset(stem(word) for word in words if word not in STOP_WORDS)


def names(text: str | None, words: frozenset[str]) -> bool:
    """Return whether one line of a text holds every one of these words, and there are any."""
    return bool(words) and any(words <= content_words(line) for line in (text or "").splitlines())
