"""What a model can do, found out by asking it; the first thing to run with a new server or model.

    for finding in check(generator):
        print(finding.what, finding.result)

Pictures are flat colours, so that an answer is right or wrong without a judge. Nothing here decides
what a session does: it prints what to write behind the model's name.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, cast

import numpy as np

from streammem.errors import StreammemError
from streammem.models.backbones.language import GenerationConfig, Prompt
from streammem.models.protocols import EvidenceItem, Reads, Tool, ToolCall, ToolGenerator
from streammem.models.vlm.prompts import Part

COLOURS = {
    "red": (220, 20, 20),
    "blue": (20, 40, 220),
    "yellow": (240, 230, 20),
    "black": (5, 5, 5),
    "green": (20, 160, 40),
    "white": (250, 250, 250),
    "orange": (250, 140, 10),
    "purple": (130, 30, 170),
}
COUNTS = (1, 2, 4, 8)
SIZES = ((180, 320), (360, 640), (720, 1280))  # the first is a stored keyframe's
ORDER = (
    "Each picture above is one plain colour. Name the colours in order, one word for each picture, "
    "with commas between them and nothing else."
)
TOOL = Tool(
    "look",
    "Show the picture that was taken at a time.",
    {
        "type": "object",
        "properties": {"seconds": {"type": "number", "description": "from the beginning"}},
        "required": ["seconds"],
    },
)
TOOL_REQUEST = "Call the tool look with 12 seconds. Do not answer in words."
SLOW_S = 2.5  # for a caption of a camera's scenes, which follow each other every ten seconds
USUAL_TIMEOUT_S, LONG_TIMEOUT_S = 120, 300


class CountedReply(Protocol):
    """A reply, and what it took."""

    @property
    def text(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def reply_tokens(self) -> int: ...


class Checkable(Protocol):
    """What is asked of a generator to check it.

    Attributes:
        about: which model it is, and where it runs.
        reads: pictures at most; whether it can call tools, as far as is known without asking.
        context: tokens of a prompt and its reply at most; None where it is not known.
        is_served: whether a server runs it, so that it may be waited for in vain.
        most_pictures: that its options allow in a prompt.
        caption_pictures: that its options allow in a caption.
    """

    @property
    def about(self) -> str: ...
    @property
    def context(self) -> int | None: ...
    @property
    def reads(self) -> Reads: ...
    @property
    def is_served(self) -> bool: ...
    @property
    def most_pictures(self) -> int: ...
    @property
    def caption_pictures(self) -> int: ...
    @property
    def decoding(self) -> GenerationConfig: ...

    def caption_prompt(self, item: EvidenceItem, instruction: str | None = None) -> Prompt:
        """Build the prompt of a caption."""
        ...

    def count(self, parts: Sequence[Part]) -> tuple[int, int]:
        """Return how many tokens a prompt takes, and its cheapest picture."""
        ...

    def ask(self, parts: Sequence[Part], decoding: GenerationConfig) -> CountedReply:
        """Reply to a prompt as a whole."""
        ...


class CheckLine(NamedTuple):
    """One line of the table.

    Attributes:
        what: was tried.
        result: in words.
        is_good: whether it is as it should be.
    """

    what: str
    result: str
    is_good: bool = True


@dataclass(eq=False)
class Check:
    """Asks a model step by step.

    Args:
        generator: that is checked.

    Attributes:
        pictures: that it read and named in order, at most; 0 until ``findings`` has found out.
        caption_s: seconds of a caption; likewise.
    """

    generator: Checkable
    pictures: int = 0
    caption_s: float = 0.0

    def findings(self) -> Iterator[CheckLine]:
        """Yield what is found, step by step; a step may take a minute."""
        yield CheckLine("model", self.generator.about)
        context = self.generator.context
        tokens = f"{context} tokens" if context else "the server does not say"
        yield CheckLine("context", tokens, is_good=bool(context))
        for height, width in SIZES:
            yield self._size(height, width)
        for count in COUNTS:
            finding = self._order(count)
            self.pictures = count if finding.is_good else self.pictures
            yield finding
            if not finding.is_good and count > 1:
                break
        yield self._caption()
        yield self._tool()

    def advice(self) -> list[str]:
        """Return what to write, once ``findings`` has ended."""
        if not self.pictures:
            return ["do not use it: it does not see, or does not say what it sees"]
        options, lines = list[str](), list[str]()
        if self.pictures < self.generator.most_pictures:
            options.append(f"pictures={self.pictures}")
        if not self.generator.context:
            lines.append("give its context, as in ?context=8192: without it nothing is fitted")
        if self.generator.is_served and self.caption_s > USUAL_TIMEOUT_S / 4:
            options.append(f"timeout_s={LONG_TIMEOUT_S}")
        if options:
            lines.append(f"write ?{'&'.join(options)} behind its name")
        if self.caption_s > SLOW_S:
            lines.append("for cameras let it answer only: --answer-with, and ours captions")
        else:
            lines.append("it is fast enough for captions of a camera: --model")
        return lines

    def _size(self, height: int, width: int) -> CheckLine:
        what = f"picture of {width}x{height}"
        try:
            _, tokens = self.generator.count(["A picture:", _flat("red", height, width)])
        except StreammemError as error:
            return CheckLine(what, str(error), is_good=False)
        return CheckLine(what, f"{tokens} tokens")

    def _order(self, count: int) -> CheckLine:
        what = "1 colour" if count == 1 else f"order of {count} colours"
        names = list(COLOURS)[:count]
        parts: list[Part] = []
        for number, name in enumerate(names):
            parts += [f"[00:{number:02d}.0]:", _flat(name, *SIZES[0])]
        parts.append(ORDER)
        decoding = replace(self.generator.decoding, max_new_tokens=128)
        try:
            reply = self.generator.ask(parts, decoding)
        except StreammemError as error:
            return CheckLine(what, str(error), is_good=False)
        said = [word for word in re.findall(r"[a-z]+", reply.text.lower()) if word in COLOURS]
        if said == names:
            return CheckLine(what, f"right, {reply.prompt_tokens} tokens")
        shown = ", ".join(said) or f"none of them in {reply.text[:60]!r}"
        return CheckLine(
            what, f"wrong: {', '.join(names)} were shown, it says {shown}", is_good=False
        )

    def _caption(self) -> CheckLine:
        names = list(COLOURS)[: min(self.generator.caption_pictures, 4)]
        frames = tuple(_flat(name, *SIZES[0]) for name in names)
        prompt = self.generator.caption_prompt(EvidenceItem(0.0, 4.0, keyframes=frames))
        parts = [part for part in prompt if isinstance(part, str | np.ndarray)]
        try:
            self.generator.count(parts)  # which opens nothing while the clock runs
            began = time.monotonic()
            reply = self.generator.ask(parts, self.generator.decoding)
        except StreammemError as error:
            return CheckLine("caption", str(error), is_good=False)
        self.caption_s = time.monotonic() - began
        shown = f"{len(frames)} pictures, {reply.reply_tokens} tokens"
        return CheckLine("caption", f"{self.caption_s:.1f} s ({shown}): {reply.text[:120]}")

    def _tool(self) -> CheckLine:
        """Ask for one call of one tool, which ``--steps`` needs."""
        if not self.generator.reads.tools:
            return CheckLine("tools", "no: it is offered none here", is_good=False)
        talk = cast(ToolGenerator, self.generator).converse  # as reads.tools declares
        decoding = replace(self.generator.decoding, max_new_tokens=128)
        try:
            replies = [r for r in talk([TOOL_REQUEST], (), (TOOL,), decoding) if r is not None]
        except StreammemError as error:
            return CheckLine("tools", f"no: {error}", is_good=False)
        match replies[-1] if replies else "":
            case ToolCall(TOOL.name, {"seconds": 12}):
                return CheckLine("tools", "yes")
            case ToolCall(called, arguments):
                return CheckLine(
                    "tools", f"no: it called {called}({arguments})"[:120], is_good=False
                )
            case said:
                shown = f"no: instead of a call it says {str(said)[:60]!r}"
                return CheckLine("tools", shown, is_good=False)


def _flat(name: str, height: int, width: int) -> np.ndarray:
    return np.tile(np.array(COLOURS[name], np.uint8), (height, width, 1))
