"""Generators of the tests that read pictures, call tools and answer yes or no, as scripted."""

import numpy as np

from streammem.models.backbones.language import GenerationConfig, GrowingReply
from streammem.models.protocols import ComposedModel, Reads, ToolCall
from tests.tiny import COLOURS, tiny_model


def named(picture):
    """The colour that a picture has nearly everywhere."""
    mean = np.median(np.asarray(picture).reshape(-1, 3), axis=0)
    return min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())


def pictures_in(parts):
    return [part for part in parts if not isinstance(part, str)]


class Scripted:
    """Calls what its script says, then answers by the colours of all pictures that it is shown.

    A question of yes or no it answers by whether a picture has a colour that the question names.

    Args:
        pictures: that it reads.
        script: tool calls, each a ``ToolCall``, a text, or a function of (prompt, turns).
    """

    batches = False
    decoding = GenerationConfig(max_new_tokens=8)

    def __init__(self, pictures=4, script=(), tools=True):
        self.reads, self.script = Reads(pictures=pictures, tools=tools), list(script)
        self.asked, self.offered, self.prompts = [], [], []

    def caption_prompt(self, item, instruction=None):
        return [*item.keyframes, instruction or "Describe."]

    def answer_prompt(self, items, question):
        parts = []
        for item in items:
            for keyframe in item.keyframes:
                parts += [f"[{item.start:.1f}]", keyframe]
        self.prompts.append([*parts, question])
        return self.prompts[-1]

    def replies(self, prompts, decoding, candidates=1):
        for prompt in prompts:
            yield tuple(GrowingReply(self._words(prompt), [], []) for _ in range(candidates))

    def stream(self, prompt, decoding):
        yield self._words(prompt)

    def converse(self, prompt, turns, tools, decoding):
        self.asked.append((prompt, turns))
        self.offered.append(tools)
        step = self.script[len(turns)] if len(turns) < len(self.script) else None
        if callable(step):
            step = step(prompt, turns)
        yield None
        if step is None:
            step = self._words([*prompt, *(part for turn in turns for part in turn.result)])
        yield step

    def _words(self, parts):
        colours = [named(picture) for picture in pictures_in(parts)]
        question = next((p for p in parts if isinstance(p, str) and "yes or no" in p), None)
        if question is None:
            return " ".join(dict.fromkeys(colours)) or "nothing"
        return "Yes." if any(colour in question for colour in colours) else "No."


def calling(name, **arguments):
    return ToolCall(name, arguments)


def model_of(generator, keys=None):
    """A model whose keys and perception are lent by another; there is no segment encoder."""
    keys = keys or tiny_model()
    return ComposedModel("looking", "looking-1", keys, keys, generator)
