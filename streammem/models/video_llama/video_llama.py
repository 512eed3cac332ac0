"""Video-LLaMA behind our sessions: weights only, no stream state.

Its towers, Q-Formers and language model are its own. Scenes and keys are lent by one of our models.
A memory keeps of a segment what its frames and clips gave each by itself; which of them the video
Q-Former reads together is decided when a caption or an answer is written. Where weights come from
is ``published.py``'s business.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from streammem.audio.scene_sound import SceneSound
from streammem.models.backbones.imagebind import CLIP_S, RATE, clip_starts, spectrogram
from streammem.models.backbones.language import Prompt
from streammem.models.protocols import EncodedSegment, EvidenceItem
from streammem.models.published import CAPTION_REQUEST, PublishedModel
from streammem.models.video_llama.branches import PictureBranch, SoundBranch
from streammem.models.video_llama.options import VideoLlamaOptions
from streammem.models.video_llama.prompts import (
    FRAMING,
    OWN_SOUND,
    SYSTEM,
    Parts,
    Slot,
    picture_prompt,
    published_text,
    sound_prompt,
    text_prompt,
    time_line,
    video_prompt,
)
from streammem.perception.frames import SegmentFrames, spread
from streammem.types import clock

# Legend: T frames, S side in pixels, Q queries a frame, W width of the Q-Formers, L width of the
# language model, C clips, E width of a clip's vector.

MIN_CLIP = 400  # samples: below 25 ms there is nothing to hear
MOST = 8  # frames of a segment
BASE = 127  # of the digits of a time: the levels of a value with 8 bits


class Kept(NamedTuple):
    """What a memory keeps of a segment, packed into rows of width W; zeros at the end.

    Attributes:
        frames: [T, Q, W] each read by itself.
        after: seconds of each behind the segment's start; empty where they are not known, also of
            neighbours that a memory has merged.
        clips: [C, E] of its sound, each heard by itself; None without sound.
    """

    frames: Tensor
    after: list[float]
    clips: Tensor | None


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoLlama(PublishedModel):
    """A Video-LLaMA checkpoint.

    Attributes:
        pictures: its own branch.
        sound: likewise; None without the weights of one.
    """

    whole = "one"

    options: VideoLlamaOptions
    pictures: PictureBranch
    sound: SoundBranch | None

    def identity(self) -> tuple[str, Iterable[tuple[str, Tensor]]]:
        """Return the shape of a memory's rows, how clips are read, and weights that make rows."""
        weights = [self.pictures.tower.patch_embed.proj.weight, *self.pictures.reader.parameters()]
        if self.sound:
            weights += self.sound.ears.modality_heads.parameters()
        return f"{self.token_shape} {self.options.clip_means}", (("", value) for value in weights)

    @property
    def session_options(self) -> dict[str, Any]:
        """Options of ``SessionConfig`` that it has otherwise."""
        return super().session_options | (
            {"sound": self.options.without_sound, "channels": self.options.channels}
            if self.sound
            else {}
        )

    @property
    def token_shape(self) -> tuple[int, int]:
        """Rows and width of what a memory keeps of a segment, see ``Kept``."""
        sizes = self.pictures.sizes.reader
        return self.options.kept_frames * sizes.queries + 1 + self._clip_rows, sizes.width

    @property
    def _clip_rows(self) -> int:
        if not self.sound:
            return 0
        values = self.sound.sizes.positions * self.sound.sizes.reader.reads
        return -(-values // self.pictures.sizes.reader.width)

    # -- the frame-rate path --

    def pixels(self, picture: np.ndarray) -> Tensor:
        """Shrink a picture to the tower's square; its aspect is not kept, as in training."""
        side = self.pictures.sizes.tower.side
        squeezed = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(squeezed))

    def choose(self, count: int) -> list[int]:
        """Choose the frames that are read, of so many."""
        most = min(count, self.options.frames)
        if self.options.reach == "end":
            return spread(count, most)
        return [i * count // most for i in range(most)]

    @torch.inference_mode()
    def encode_segment(
        self, frames: SegmentFrames, memory: Tensor, related: Tensor | None
    ) -> EncodedSegment:
        """Read a segment's frames and clips, each by itself.

        Args:
            frames: their patches are pixels [S, S, 3]; more than ``frames`` are thinned.
            memory: [0, 0].
            related: None.
        """
        chosen = self.choose(len(frames.patches))
        kept = [chosen[i] for i in spread(len(chosen), self.options.kept_frames)]
        read = self.pictures.frames(torch.stack([frames.patches[i] for i in kept])).cpu()
        after = [frames.times[i] - frames.times[0] for i in kept] if frames.times else []
        clips = self.hear(frames.sound) if self.sound and frames.sound else None
        return EncodedSegment(self.pack(Kept(read, after, clips)), memory)

    @torch.inference_mode()
    def hear(self, sound: SceneSound) -> Tensor | None:
        """Read clips of a scene's sound, evenly over it: [C, E]; None where there is none.

        A clip that lies behind the end of the sound is the one before it; one that has none while
        a later one has some is silence.
        """
        assert self.sound
        samples = round(sound.duration * RATE)
        count = self.sound.sizes.positions
        starts = clip_starts(samples, to_end=self.options.clip_reach == "end", count=count)
        own = self.options.clip_means == "own"
        if own:
            clips = [torch.from_numpy(sound.read(start / RATE, CLIP_S)) for start in starts]
        else:
            whole = torch.from_numpy(sound.read(0.0, sound.duration))
            clips = [whole[start : start + round(CLIP_S * RATE)] for start in starts]
        while clips and len(clips[-1]) < MIN_CLIP:
            clips.pop()
        made = []
        for clip in clips:
            if len(clip) < MIN_CLIP:
                clip = torch.zeros(round(CLIP_S * RATE))
            if own:
                made.append(spectrogram(clip))
            else:
                clip -= clip.mean()  # also in those that overlap it and come later
                made.append(spectrogram(clip, mean=0.0))
        made += made[-1:] * (count - len(made))
        return self.sound.clips(made).cpu() if made else None

    # -- the slow path --

    def caption_prompt(self, item: EvidenceItem, instruction: str | None = None) -> Prompt:
        """Build the prompt that describes a segment; its frames are timed from its start."""
        return self._prompt([item], instruction or CAPTION_REQUEST, zero=item.start)

    def answer_prompt(self, items: Sequence[EvidenceItem], question: str) -> Prompt:
        """Build the prompt that answers from evidence, which comes in time order.

        With ``answers="reread"`` frames of all items are one video, as many as there are positions,
        with ``apart`` each item is a video of its own. Clips of all items are one sound.
        """
        return self._prompt(items, question, zero=0.0)

    def _prompt(self, items: Sequence[EvidenceItem], request: str, *, zero: float) -> Prompt:
        """Build a prompt that has room, see ``VideoLlamaOptions.fit``."""
        most, left = self.options.max_tokens, list(items)
        while True:
            prompt = self._prompt_of(left, request, zero=zero)
            if sum(map(self._length, prompt)) <= most:
                return prompt
            if self.options.fit == "front":
                return [self.language.embed(prompt)[-most:]]
            if not left:
                return prompt
            left.pop(min(range(len(left)), key=lambda place: left[place].score))

    def _length(self, part: Any) -> int:
        return len(self.language.text_ids(part)) if isinstance(part, str) else len(part)

    @torch.inference_mode()
    def _prompt_of(self, items: Sequence[EvidenceItem], request: str, *, zero: float) -> Prompt:
        # 1. What is shown: each item's frames; captions of those that have none any more.
        shown, told = list[tuple[EvidenceItem, Kept]](), ""
        for item in items:
            if item.tokens is not None and len(item.tokens):
                segment = self.unpack(item.tokens)
                if not segment.after:  # evenly over the segment
                    step = (item.end - item.start) / len(segment.frames)
                    evenly = [(i + 0.5) * step for i in range(len(segment.frames))]
                    segment = segment._replace(after=evenly)
                shown.append((item, segment))
            elif item.caption:
                told += f"[{clock(item.start)}-{clock(item.end)}] {item.caption}\n"
        request = told + request
        # 2. No more frames together than there are positions; the weakest items go first.
        positions = self.pictures.sizes.positions
        strongest = sorted(range(len(shown)), key=lambda i: -shown[i][0].score)[:positions]
        kept = [(shown[i][0].start - zero, shown[i][1]) for i in sorted(strongest)]
        share = positions // max(1, len(kept))
        videos: list[tuple[Tensor, list[float]]] = []
        for start, segment in kept:
            chosen = spread(len(segment.frames), share)
            videos.append((segment.frames[chosen], [start + segment.after[i] for i in chosen]))
        if self.options.answers == "reread" and videos:
            whole = [time for _, times in videos for time in times]
            videos = [(torch.cat([frames for frames, _ in videos]), whole)]
        # 3. Sound of all of them.
        heard = [segment.clips for _, segment in kept if segment.clips is not None]
        clips = torch.cat(heard) if heard and self.sound else None
        # 4. Words around them, and their tokens between.
        parts = self._parts(videos, request, listens=clips is not None)
        device = self.pictures.positions.weight.device
        pictures = iter(videos)
        prompt: list[str | Tensor] = [self.begin()]
        for part in parts:
            if part is Slot.PICTURES:
                prompt.append(self.pictures.read(next(pictures)[0].to(device)))
            elif part is Slot.SOUND:
                assert self.sound and clips is not None
                chosen = spread(len(clips), self.sound.sizes.positions)
                scaled = self.options.sound_scale == "used"
                prompt.append(self.sound.read(clips[chosen].to(device), scaled=scaled))
            else:
                prompt.append(part)
        return prompt

    def _parts(
        self, videos: Sequence[tuple[Tensor, list[float]]], request: str, *, listens: bool
    ) -> Parts:
        chat, theirs = self.options.chat, self.options.words == "published"
        lines = [time_line(times) for _, times in videos]
        if not videos:
            return text_prompt(chat, self._system(), request)
        if listens and theirs:  # which states no times
            return sound_prompt(chat, self._published(FRAMING), [""] * len(lines), request)
        if listens:
            return sound_prompt(chat, OWN_SOUND, lines, request)
        return video_prompt(chat, self._system(), lines, request)

    def _system(self) -> str:
        """Return the system's sentence for videos; the parent's demo with sound has none."""
        if self.options.words == "ours" or self.sound:
            return ""
        return self._published(SYSTEM)

    def _published(self, where: tuple[str, str]) -> str:
        return published_text(Path(self.options.parent), where)

    @torch.inference_mode()
    def see(self, picture: np.ndarray, question: str) -> Prompt:
        """Build the prompt that asks about a still picture, [H, W, 3] uint8 RGB."""
        pixels = self.pixels(picture)[None]
        system = self._published(SYSTEM) if self.options.words == "published" else ""
        before, _, after = picture_prompt(self.options.chat, system, question)
        assert isinstance(before, str) and isinstance(after, str)
        return [self.begin(), before, self.pictures.read(self.pictures.frames(pixels)), after]

    # -- rows --

    def pack(self, kept: Kept) -> Tensor:
        """Join what a memory keeps of a segment: ``token_shape``, float32.

        Times are whole tenths of a second in three digits, which 8-bit rows keep exactly. A sum
        behind them no longer fits where a memory has averaged rows of neighbours.
        """
        rows, width = self.token_shape
        packed = torch.zeros(rows, width)
        frames = kept.frames.flatten(0, 1)
        packed[: len(frames)] = frames
        line = packed[self.options.kept_frames * self.pictures.sizes.reader.queries]
        if kept.after:
            line[0] = BASE  # the greatest of its group, so that a step is 1
            for place, time in enumerate(kept.after):
                tenths = min(round(time * 10), BASE**3 - 1)
                for digit in range(3):
                    line[1 + 3 * place + digit] = tenths // BASE**digit % BASE
            line[1 + 3 * MOST] = _sum_of(line[1 : 1 + 3 * MOST].tolist())
        if kept.clips is not None:
            flat = packed[rows - self._clip_rows :].view(-1)
            flat[: kept.clips.numel()] = kept.clips.flatten()
        return packed

    def unpack(self, rows: Tensor) -> Kept:
        """Take the rows of a segment apart."""
        sizes = self.pictures.sizes.reader
        end = self.options.kept_frames * sizes.queries
        frames = rows[:end].float().unflatten(0, (-1, sizes.queries))
        frames = frames[frames.flatten(1).any(dim=1)]
        line, after = rows[end].float().tolist(), list[float]()
        if line[0] == BASE and line[1 + 3 * MOST] == _sum_of(line[1 : 1 + 3 * MOST]):
            digits = [line[1 + 3 * place : 4 + 3 * place] for place in range(len(frames))]
            after = [(a + b * BASE + c * BASE**2) / 10 for a, b, c in digits]
        clips = None
        if self.sound:
            count, size = self.sound.sizes.positions, self.sound.sizes.reader.reads
            flat = rows[end + 1 :].float().flatten()[: count * size].view(count, size)
            clips = flat if bool(flat.any()) else None
        return Kept(frames, after, clips)


def _sum_of(digits: Sequence[float]) -> float:
    """Check digits of times; no average of two lines has the average of their sums."""
    return sum((place + 1) * digit**2 for place, digit in enumerate(digits)) % BASE
