"""Asking a generator yes or no of pictures: for alerts, conditions, and what keys have not seen.

    verdicts = check(generator, [EvidenceItem(3.0, 4.0, keyframes=(picture,))], "a dog on the sofa")
    verdicts[0]   # True, False, or None where the reply is neither yes nor no

One question a picture, all in one batch. What follows from a verdict is decided elsewhere.
"""

import re
from collections.abc import Callable, Sequence

from streammem.models.backbones.language import GenerationConfig, Prompt
from streammem.models.protocols import EvidenceItem, Generator, readable

DECODING = GenerationConfig(max_new_tokens=32)
_YES_OR_NO = re.compile(r"\b(yes|no|not)\b", re.IGNORECASE)


def shows_question(description: str) -> str:
    """Ask whether a picture shows something; several phrasings of it are divided by ``|``."""
    phrasings = [phrase.strip() for phrase in description.split("|")]
    return f"Does the picture show {' or '.join(phrasings)}? Answer yes or no."


def holds_question(condition: str) -> str:
    """Ask whether a condition, such as ``the parcel is gone``, holds in the last picture."""
    return f"Is this true now, in the last picture: {condition}? Answer yes or no."


def check_prompt(generator: Generator, items: Sequence[EvidenceItem], question: str) -> Prompt:
    """Build the prompt of a question of yes or no about evidence, which comes in time order."""
    return generator.answer_prompt(readable(items, generator.reads), question)


def verdict(reply: str) -> bool | None:
    """Read a reply: yes or no by its first such word; None where it has neither."""
    found = _YES_OR_NO.search(reply)
    return None if found is None else found[1].lower() == "yes"


def check(
    generator: Generator,
    items: Sequence[EvidenceItem],
    description: str,
    on_wait: Callable[[], object] | None = None,
) -> list[bool | None]:
    """Ask of each piece of evidence by itself whether it shows something.

    Args:
        generator: reads pictures.
        items: each with a picture.
        description: of what is looked for.
        on_wait: called while replies are waited for.
    """
    question = shows_question(description)
    prompts = [check_prompt(generator, [item], question) for item in items]
    if not prompts:
        return []
    verdicts = []
    for replies in generator.replies(prompts, DECODING):
        if replies is not None:
            verdicts.append(verdict(replies[0].text))
        elif on_wait:
            on_wait()
    return verdicts
