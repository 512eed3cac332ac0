"""Frames and subtitles against the parent's rules, written out anew, on random videos."""

import numpy as np
import pytest

from streammem.models.minigpt4_video.interleaving import (
    Cue,
    moved,
    parents_shots,
    placed,
    shortened,
    texts,
)
from streammem.types import Note

WORDS = "go stop yes no the red blue cat dog".split()  # noqa: SIM905


def random_video(seed):
    """Length, rate and subtitles of a video: some overlap, repeat, or lie after its end."""
    rng = np.random.default_rng(seed)
    fps = float(rng.choice([0.9, 8.0, 23.976, 25.0, 30.0]))
    total = int(rng.integers(1, 400))
    length_ms, cues = int(total / fps * 1000), []
    for _ in range(int(rng.integers(0, 25))):
        start = int(rng.integers(0, max(1, int(length_ms * 1.1))))
        text = " ".join(rng.choice(WORDS, int(rng.integers(1, 6))))
        cues.append(Cue(start, start + int(rng.integers(0, 3000)), text))
    if rng.random() < 0.7:
        cues.sort()
    limits = {"most": int(rng.integers(1, 50)), "words": int(rng.integers(1, 40))}
    return {
        "num_frames": max(1, total - int(rng.integers(0, 3))), "total": total, "fps": fps, **limits
    }, cues  # fmt: skip


def prompt_by_the_rules(rule, cues, num_frames, total, fps, most, words):
    """The parent's prompt before the question, as the facts state it, letter by letter."""
    step = int(total / most) or 1
    prompt, pending, used, count, taken, last = "", "", [], 0, 0, None
    for n in range(num_frames):
        if taken == most:
            break
        if rule == "plain":
            low, high, hit = 0, len(cues) - 1, None
            while hit is None and low <= high:
                mid = (low + high) // 2
                begin, end, text = cues[mid]
                if n / fps * 1000 < begin:
                    high = mid - 1
                elif n / fps * 1000 > end:
                    low = mid + 1
                else:
                    hit = text
        else:
            seconds, hit = n / max(int(fps), 1), None
            for begin, end, text in cues:
                if begin / 1000 <= seconds <= end / 1000 and text not in pending:
                    hit = text
                    break
        if hit and hit not in used:
            used.append(hit)
            pending += hit + " "
        if n % step == 0:
            prompt += "<Img><ImageHere>"
            taken, last = taken + 1, n
            if pending and count < words:
                prompt += "<Cap>" + pending
                count += len(pending.split(" "))
                pending = ""
    if rule == "goldfish":
        prompt += "<Img><ImageHere>" * (most - taken)
    return prompt, last


@pytest.mark.parametrize("rule", ["plain", "goldfish"])
def test_three_hundred_random_videos_are_read_by_the_parents_rules(rule):
    captioned = 0
    for seed in range(300):
        sizes, cues = random_video(seed)
        shots = parents_shots(rule, cues, **sizes)
        expected, last = prompt_by_the_rules(rule, cues, **sizes)
        written = "<ImageHere>".join(texts([s.caption for s in shots], "Q?", "plain"))
        assert written == f"[INST] {expected}\nQ? [/INST]"
        assert max(shot.frame for shot in shots) == last
        assert len(shots) == sizes["most"] or rule == "plain"
        captioned += any(shot.caption for shot in shots)
    assert captioned > 150


def test_every_subtitle_stands_once_in_order_beside_a_frame_not_before_it_begins():
    """What the parent loses: what overlaps, what is said twice, what follows the last frame."""
    for seed in range(300):
        _, cues = random_video(seed)
        notes = [Note(c.start / 1000, c.end / 1000, c.text) for c in sorted(cues)]
        times = np.cumsum(np.random.default_rng(seed).uniform(0.1, 4, 20)).tolist()
        captions = placed(times, notes)
        assert "".join(captions) == "".join(f"{note.text} " for note in notes)
        for time, before, caption in zip(times, [-1, *times], captions, strict=False):
            due = [n.text for n in notes if before < n.start <= time]
            assert time == times[-1] or caption == "".join(f"{text} " for text in due)


def test_words_beyond_the_budget_leave_the_longest_captions_and_never_more():
    rng = np.random.default_rng(0)
    for _ in range(300):
        lengths, budget = rng.integers(0, 12, 9).tolist(), int(rng.integers(0, 60))
        notes = [Note(float(i), i + 1.0, "w " * n) for i, n in enumerate(lengths)]
        captions = placed([float(i) for i in range(9)], notes)
        kept = [len(caption.split()) for caption in shortened(captions, budget)]
        most = max(kept)
        assert kept == [min(n, most) for n in lengths]
        assert sum(kept) <= budget
        one_more = sum(min(n, most + 1) for n in lengths)
        assert one_more > budget or most == max(lengths)


def test_captions_of_frames_that_are_left_out_move_to_the_next_and_keep_their_order():
    captions = ["a ", "", "b ", "c ", "d "]
    assert moved(captions, [0, 3]) == ["a ", "b c d "]
    assert moved(captions, range(5)) == captions and moved(captions, []) == []


def test_the_text_of_training_has_one_space_less():
    assert texts(["", "hi "], "What?", "plain")[-1] == "<Cap>hi \nWhat? [/INST]"
    assert texts(["", "hi "], "What?", "trained") == [
        "[INST] <Img>", "<Img>", "<Cap>hi \nWhat?[/INST]"
    ]  # fmt: skip
    assert texts([], "What?", "trained") == ["[INST] \nWhat?[/INST]"]
