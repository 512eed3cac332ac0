"""Teaching a name: pictures become keys, and a picture of a moment is cut from the memory.

    picture, segment = picture_at(memory, file_of, time=723.0, box=(0.2, 0.3, 0.4, 0.4))
    taught = taught_with(model, "my cup", [(picture, segment)])
    memory.teach(taught)

People are asked for expressly. A key tells how a picture looks as a whole: of a person that is
mostly clothes and place, so that a name would stick to strangers in a like coat.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from streammem.errors import ConfigError, StreammemError
from streammem.memory.entry import Entry, decode_keyframe
from streammem.memory.memory import Memory
from streammem.memory.named import Taught, TaughtPicture, check_name
from streammem.memory.retrieval import Query, scale_of
from streammem.models.protocols import StreamModel
from streammem.perception.background import Box
from streammem.perception.frames import KEYFRAME_SIDE, jpeg_of
from streammem.qa.lookups import pictures_of
from streammem.qa.timeline import newest_of
from streammem.types import clock
from streammem.video.pixels import fitted_pixels

PEOPLE = ("a person", "a man", "a woman", "a child", "a close-up of a face", "a group of people")
PEOPLE_FROM = 0.2  # probability; at SEEN every second photo of people passed unasked
LEAST_SIDE = 16  # pixels of a picture that is taught


def taught_with(
    model: StreamModel,
    name: str,
    pictures: Sequence[tuple[np.ndarray, int | None]],
    *,
    person: bool = False,
) -> Taught:
    """Make a thing of a name and pictures.

    Args:
        model: makes the keys.
        name: one line of at most 60 letters.
        pictures: at least one, [H, W, 3] uint8 RGB each, and the id of the scene that it was cut
            from; None for one that came from elsewhere.
        person: it is a person; see the module.

    Raises:
        ConfigError: a name that cannot be asked for, no picture, one that is too small, or one
            that looks like people without ``person``.
    """
    check_name(name)
    made = []
    for number, (picture, segment) in enumerate(pictures, 1):
        if min(picture.shape[:2]) < LEAST_SIDE:
            height, width = picture.shape[:2]
            least = f"give one of at least {LEAST_SIDE} pixels a side"
            raise ConfigError(f"{name}: a picture has {width} x {height} pixels; {least}")
        kept = fitted_pixels(picture, KEYFRAME_SIDE)
        key = model.perceiver.perceive(kept).key
        if not person and looks_like_people(model, key):
            raise ConfigError(
                f"{name}: picture {number} looks like it shows people; give --person "
                "(person=True) if you mean to teach a person, or a box without them"
            )
        made.append(TaughtPicture(jpeg_of(kept), key, model.fingerprint, segment))
    return Taught(name, person, tuple(made))


def renewed(model: StreamModel, taught: Taught) -> Taught:
    """Return a thing with keys of this model; the same one where they are."""
    if all(picture.fingerprint == model.fingerprint for picture in taught.pictures):
        return taught
    pictures = tuple(
        picture
        if picture.fingerprint == model.fingerprint
        else picture._replace(
            key=model.perceiver.perceive(decode_keyframe(picture.jpeg)).key,
            fingerprint=model.fingerprint,
        )
        for picture in taught.pictures
    )
    return Taught(taught.name, taught.is_person, pictures)


def looks_like_people(model: StreamModel, key: np.ndarray) -> bool:
    """Return whether a picture's key [D_key] is likely enough to show people to ask for them.

    Of 1,000 photos a fifth of those with people pass, and a seventh of those without are refused:
    docs/research/assistant.md.
    """
    encoder = model.text_encoder
    for sentence in encoder.sentence_keys(list(PEOPLE)):
        background = encoder.background.numpy() @ sentence
        scale = scale_of(Query(sentence, background=background, null=encoder.null))
        if scale.probability(np.array([key @ sentence]))[0] >= PEOPLE_FROM:
            return True
    return False


def picture_at(
    memory: Memory,
    file_of: Callable[[Entry], Path | None],
    time: float,
    box: Box | None = None,
    source: str | None = None,
) -> tuple[np.ndarray, int]:
    """Cut a picture from a moment: of its file where that is at hand, else the scene's keyframe.

    Args:
        memory: what was seen.
        file_of: returns the video file that a row was seen in.
        time: seconds of the source's clock.
        box: (x, y, width, height) of the part that shows the thing, in shares of the picture in
            [0, 1] from its upper left corner; None for all of it.
        source: that the moment is of; None for the newest row of that time.

    Returns:
        The picture [H, W, 3] uint8 RGB, and the id of its scene.

    Raises:
        ConfigError: nothing was seen then, no picture is kept, or a box outside the picture.
    """
    named = [row for row in memory.entries() if source in (None, row.source)]
    there = [row for row in named if row.start <= time < row.end]
    row, picture = newest_of(there), None
    if row is None:
        raise ConfigError(f"nothing was seen at {clock(max(0.0, time))}; `find` tells times")
    path = file_of(row)
    if path is not None:
        try:
            picture = pictures_of(path, time, time, 1)[0].pixels
        except (StreammemError, IndexError):
            picture = None  # the file has changed or cannot be read: the keyframe stands for it
    if picture is None:
        jpeg = memory.keyframe(row.segment)
        if jpeg is None:
            raise ConfigError(f"no picture is kept of {clock(time)}; give a picture file")
        picture = decode_keyframe(jpeg)
    if box is None:
        return picture, row.segment
    x, y, width, height = box
    if not (0 <= x < x + width <= 1 and 0 <= y < y + height <= 1):
        shares = "give x,y,w,h in shares of the picture, as in 0.25,0.1,0.5,0.4"
        raise ConfigError(f"box {','.join(f'{each:g}' for each in box)}: {shares}")
    rows, columns = picture.shape[:2]
    top, left = int(y * rows), int(x * columns)
    bottom, right = round((y + height) * rows), round((x + width) * columns)
    return np.ascontiguousarray(picture[top:bottom, left:right]), row.segment
