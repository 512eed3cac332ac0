"""Nouns of lists: one thing with its article, and several.

indefinite("bus")  # "a bus"
plural("knife")  # "knives"
"""

from streammem.models.tiny.words import with_article

IRREGULAR = {"knife": "knives", "person": "people", "sheep": "sheep", "shelf": "shelves",
             "tomato": "tomatoes"}  # fmt: skip


def indefinite(noun: str) -> str:
    """Return a noun with its article, if it takes one: several things take none."""
    return noun if _is_plural(noun) else with_article(noun)


def plural(noun: str) -> str:
    """Return the name of several things; of pants and the like it is that of one."""
    if _is_plural(noun):
        return noun
    for ending, several in IRREGULAR.items():
        if noun.endswith(ending):
            return noun.removesuffix(ending) + several
    return f"{noun}es" if noun.endswith(("s", "sh", "ch", "x")) else f"{noun}s"


def _is_plural(noun: str) -> bool:
    return noun.endswith("s") and not noun.endswith(("ss", "bus"))
