"""Video-LLaMA's prompts, exact to the token: text around pictures and sound, in the order of each.

    parts = video_prompt("llama2", "", time_line([0.0, 1.2]), "What happens?")
    parts   # ["[INST] <<SYS>>...<Video>", PICTURES, "</Video> The video contains ... [/INST]"]

Each text is tokenised by itself; the beginning-of-sequence token stands before the first. Long
wordings of the parent are not kept here: ``published_text`` finds them in its files.
"""

import ast
import hashlib
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from streammem.errors import BackboneError, CheckpointError
from streammem.models.video_llama.options import Chat

SLOT = "<ImageHere>"
STOPS: dict[Chat, tuple[str, ...]] = {"llama2": (), "vicuna": ("###",)}
# What ours puts around the sound. No text behind a slot begins with a space, of which tokenizers
# make different things.
OWN_SOUND = f"Sound: {SLOT}\nPictures: <Video>{SLOT}</Video> "
# Wordings of the parent: where they stand, and the first 16 digits of their SHA-256.
SYSTEM = ("demo_video.py", "6d8b79e7231b6a77")
FRAMING = ("video_llama/conversation/conversation_video.py", "60341a33d9842e6f")


class Slot(Enum):
    """What stands at a place of a prompt."""

    SOUND = "sound"
    PICTURES = "pictures"


Parts = list[str | Slot]


def time_line(times: Sequence[float]) -> str:
    """State when the frames of a video were sampled, in seconds, as the model was trained."""
    stated = ", ".join(str(round(float(time), 1)) for time in times)
    return f"The video contains {len(times)} frames sampled at {stated} seconds. "


def video_prompt(chat: Chat, system: str, times: Sequence[str], question: str) -> Parts:
    """Ask about videos: pictures of each, when they were sampled, then a question.

    Args:
        chat: how turns are written.
        system: the system's sentence; empty for none.
        times: of ``time_line``, one a video (the model was trained with one); empty text where it
            is left out.
        question: what is asked.
    """
    shown = "".join(f"<Video>{SLOT}</Video> {line}" for line in times)
    return _parts(_turn(chat, system, f"{shown} {question}"), *[Slot.PICTURES] * len(times))


def picture_prompt(chat: Chat, system: str, question: str) -> Parts:
    """Ask about a still picture; the arguments are those of ``video_prompt``."""
    return _parts(_turn(chat, system, f"<Image>{SLOT}</Image>  {question}"), Slot.PICTURES)


def sound_prompt(chat: Chat, framing: str, times: Sequence[str], question: str) -> Parts:
    """Ask about videos with sound, whose tokens stand before the pictures'.

    Args:
        chat: how turns are written; there is no system's sentence.
        framing: text with a slot for sound and one for the first video.
        times: see ``video_prompt``.
        question: what is asked.
    """
    first, *others = times
    more = "".join(f"<Video>{SLOT}</Video> {line}" for line in others)
    text = f"{framing}{first}{more} {question}"
    return _parts(_turn(chat, "", text), Slot.SOUND, *[Slot.PICTURES] * len(times))


def text_prompt(chat: Chat, system: str, question: str) -> Parts:
    """Ask without pictures."""
    return [_turn(chat, system, question)]


def _turn(chat: Chat, system: str, text: str) -> str:
    if chat == "vicuna":
        return f"{system}###Human: {text}###Assistant:"
    return f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{text} [/INST]"


def _parts(text: str, *slots: Slot) -> Parts:
    """Put slots where the placeholders stand; one that is part of a question stays text."""
    first, *rest = text.split(SLOT, len(slots))
    parts: Parts = [first]
    for slot, after in zip(slots, rest, strict=True):
        parts += [slot, after]
    return parts


def published_text(parent: Path, where: tuple[str, str]) -> str:
    """Find a wording of the parent among the string constants of its file, by its checksum.

    Args:
        parent: folder of the parent's source files; the file is parsed and never run.
        where: the file in it, and the first digits of the wording's SHA-256.

    Raises:
        BackboneError: no such file.
        CheckpointError: another version of it, which does not hold the wording.
    """
    path = parent / where[0]
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise BackboneError(
            f"{path}: not here; give parent = the folder of a clone of DAMO-NLP-SG/Video-LLaMA"
        ) from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{path}: is no Python source") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            digest = hashlib.sha256(node.value.encode("utf-8", "surrogatepass")).hexdigest()
            if digest.startswith(where[1]):
                return node.value
    raise CheckpointError(f"{path}: does not hold the published wording; get the file again")
