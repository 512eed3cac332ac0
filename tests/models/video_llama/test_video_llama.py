import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from streammem.audio.recogniser import pieces
from streammem.audio.scene_sound import SoundWindow
from streammem.audio.track import SpeechOptions
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig, defaults_of
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchOptions
from streammem.engine.whole_video import open_by_cuts
from streammem.errors import ConfigError, StoreError
from streammem.models.backbones.imagebind import RATE, clip_starts, spectrogram
from streammem.models.backbones.language import GenerationConfig
from streammem.models.protocols import EvidenceItem
from streammem.models.video_llama.options import published as as_published
from streammem.models.video_llama.prompts import OWN_SOUND
from streammem.models.video_llama.video_llama import Kept
from streammem.perception.frames import SegmentFrames
from streammem.types import Notice, Segment
from streammem.video.sound import file_sound
from streammem.video.source import Sampling
from tests.audio.clapper import live
from tests.audio.test_live_speech import Camera
from tests.command_line import events
from tests.models.heard import Planted, noise, write_film
from tests.models.video_llama import published, reference
from tests.models.video_llama.published import CLIPS, OUT, POSITIONS, SIDE, SOUND_Q, Q, W
from tests.models.videollamb.published import L
from tests.sessions import told
from tests.tiny import film

SHORT = GenerationConfig(max_new_tokens=8)
SCENES = film(("red", 5), ("blue", 8), ("green", 6), ("white", 7))
# Rows are stored with 8 bits: a 254th of the greatest of 32 neighbours, through a Q-Former.
STORED = 8e-2


def session_of(model, memory=None, **options):
    defaults = {"caption": SHORT, "answer": SHORT, "still": 0.0}
    return Session(model, SessionConfig(**defaults | options), memory=memory)


def squeezed(picture):
    shrunk = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(shrunk)


def window_of(samples, heard=None):
    """The sound of a source that begins at 0."""
    reasons = [] if heard is None else heard
    return SoundWindow(iter([(0.0, samples)] if len(samples) else []), reasons.append)


def tensors_of(prompt):
    return [part for part in prompt if isinstance(part, torch.Tensor)][1:]  # after the beginning


def texts_of(prompt):
    return [part for part in prompt if isinstance(part, str)]


# -- blocks are the formulas --


def test_a_segments_frames_are_the_formula(model, w):
    pictures = [frame.pixels for frame in SCENES[:3]]
    patches = [model.perceive(picture).patches for picture in pictures]
    for patch, picture in zip(patches, pictures, strict=True):
        np.testing.assert_array_equal(patch, squeezed(picture))
    rows = model.encode_segment(SegmentFrames(0, patches, [0, 0.5, 1]), torch.zeros(0, 0), None)
    kept = model.unpack(rows.tokens)
    expected = [reference.frame(squeezed(picture), w) for picture in pictures]
    np.testing.assert_allclose(kept.frames, expected, atol=1e-3)
    assert kept.clips is None and kept.after == []


def test_what_the_language_model_is_shown_of_a_video_is_the_formula(model, w):
    frames = torch.randn(5, Q, W)
    (shown,) = tensors_of(
        model.caption_prompt(EvidenceItem(0, 1, model.pack(Kept(frames, [], None))))
    )
    np.testing.assert_allclose(shown, reference.video(frames.double().numpy(), w), atol=1e-4)
    assert shown.shape == (Q, L)


@pytest.mark.parametrize("scale", ["trained", pytest.param("used", marks=pytest.mark.heavy)])
def test_sound_is_the_formula_and_stands_before_the_pictures(opened, w, scale):
    model = opened(sound_scale=scale)
    samples = noise(9.0)[0]
    heard = model.hear(window_of(samples).scene(0.0, 9.0))
    starts = [round(i * 7.0 * RATE / (CLIPS - 1) - 0.5) for i in range(CLIPS)]
    made = [spectrogram(torch.from_numpy(samples[s : s + 2 * RATE])) for s in clip_starts(9 * RATE)]
    assert np.abs(np.array(clip_starts(9 * RATE)) - starts).max() <= 1
    expected = [reference.clip(each[0].double().numpy(), w) for each in made]
    np.testing.assert_allclose(heard, expected, atol=1e-4)
    frames = torch.randn(2, Q, W)
    item = EvidenceItem(0, 9, model.pack(Kept(frames, [0.0, 8.0], heard)))
    sound, pictures = tensors_of(model.caption_prompt(item))
    factor = 20.0 if scale == "used" else 1.0
    np.testing.assert_allclose(sound, reference.sound(expected, w, factor), atol=2e-3)
    np.testing.assert_allclose(pictures, reference.video(frames.double().numpy(), w), atol=1e-4)
    assert sound.shape == (SOUND_Q, L)
    first, middle, last = texts_of(model.caption_prompt(item))
    assert first.endswith("\n\n" + OWN_SOUND[:7]) and middle.endswith("<Video>")
    assert last.startswith("</Video> The video contains 2 frames sampled at 0.0, 8.0 seconds.  ")


# -- rows of a memory --


@pytest.mark.parametrize("count", [1, 8])
def test_rows_keep_frames_clips_and_times_through_a_memory(model, count):
    from streammem.memory.entry import from_eight_bits, to_eight_bits

    after = [0.0, 0.3, 12.7, 1290.1, 99999.9, 3.0, 4.0, 5.0][:count]
    clips = torch.nn.functional.normalize(torch.randn(CLIPS, OUT), dim=1)
    frames = torch.randn(count, Q, W)
    packed = model.pack(Kept(frames, after, clips))
    assert packed.shape == model.token_shape
    stored = from_eight_bits(*to_eight_bits(packed.half().numpy()), model.token_shape)
    kept = model.unpack(torch.from_numpy(stored))
    assert kept.after == after  # exactly
    torch.testing.assert_close(kept.frames, frames, atol=4e-2, rtol=0)
    torch.testing.assert_close(kept.clips, clips, atol=1e-2, rtol=0)


@pytest.mark.parametrize("seed", range(10))
def test_times_of_neighbours_that_a_memory_merged_are_not_made_up(model, seed):
    draw = np.random.default_rng(seed)
    frames = torch.randn(4, Q, W)
    rows = [
        model.pack(Kept(frames, [0.0, *np.sort(draw.uniform(0, 60, 3)).round(1)], None))
        for _ in range(2)
    ]
    merged = model.unpack((rows[0] + rows[1]) / 2)
    assert merged.after == [] and len(merged.frames) == 4
    item = EvidenceItem(10.0, 18.0, (rows[0] + rows[1]) / 2)
    text = texts_of(model.answer_prompt([item], "Why?"))[1]
    assert "4 frames sampled at 11.0, 13.0, 15.0, 17.0 seconds. " in text


def test_a_segment_without_sound_keeps_none_and_pruned_rows_leave_a_prompt_of_text(model):
    assert model.unpack(model.pack(Kept(torch.randn(2, Q, W), [], None))).clips is None
    items = [EvidenceItem(0, 1, torch.zeros(0, W), "a red square")]
    prompt = model.answer_prompt(items, "What?")
    assert texts_of(prompt)[-1].endswith("[00:00.0-00:01.0] a red square\nWhat? [/INST]")
    assert tensors_of(prompt) == []


# -- beyond 32 positions --


def item_of(model, start, frames, seed, score=1.0, clips=None):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(frames, Q, W, generator=generator)
    after = [float(i) for i in range(frames)]
    return EvidenceItem(
        start, start + frames, model.pack(Kept(rows, after, clips)), score=score
    ), rows


def test_a_question_reads_the_frames_of_all_evidence_together_as_one_video(model, w):
    (first, a), (second, b) = item_of(model, 10.0, 8, 1), item_of(model, 500.0, 3, 2)
    prompt = model.answer_prompt([first, second], "Why?")
    (shown,) = tensors_of(prompt)
    chosen = [a[i] for i in (0, 1, 3, 4, 6, 7)]  # six of eight: positions are shared
    expected = reference.video([f.double().numpy() for f in (*chosen, *b)], w)
    assert POSITIONS == 12
    np.testing.assert_allclose(shown, expected, atol=1e-4)
    times = "10.0, 11.0, 13.0, 14.0, 16.0, 17.0, 500.0, 501.0, 502.0"
    assert f"contains 9 frames sampled at {times} seconds. " in texts_of(prompt)[-1]


def test_apart_each_segment_is_a_video_of_its_own(opened, w):
    model = opened(answers="apart")
    (first, a), (second, b) = item_of(model, 10.0, 4, 1), item_of(model, 50.0, 3, 2)
    prompt = model.answer_prompt([first, second], "Why?")
    for shown, frames in zip(tensors_of(prompt), (a, b), strict=True):
        expected = reference.video(frames.double().numpy(), w)
        np.testing.assert_allclose(shown, expected, atol=1e-4)
    assert "4 frames sampled at 10.0, 11.0, 12.0, 13.0 seconds. <Video>" in texts_of(prompt)[1]


@pytest.mark.parametrize(
    ("answers", "count"),
    [("reread", 5), ("apart", 40)]
    + [pytest.param(a, n, marks=pytest.mark.heavy) for a in ("reread", "apart") for n in (1, 12)]
    + [pytest.param("reread", 40, marks=pytest.mark.heavy)],
)
def test_no_prompt_needs_more_positions_than_there_are(opened, answers, count):
    model = opened(answers=answers)
    seen, plain = [], model.pictures.read
    model.pictures.read = lambda frames: (seen.append(len(frames)), plain(frames))[1]
    try:
        items = [item_of(model, 10.0 * i, 8, i, score=(i + 1) / 50)[0] for i in range(count)]
        prompt = model.answer_prompt(items, "Why?")
    finally:
        del model.pictures.read
    assert sum(seen) <= POSITIONS and seen
    # An item has the middle one of its eight frames, and the weakest items have none.
    first = {1: "at 0.0,", 5: "at 0.0,", 12: "at 4.0", 40: "at 284.0"}[count]
    assert first in texts_of(prompt)[1]


def test_sounds_of_all_evidence_are_heard_together(model, w):
    clips = torch.nn.functional.normalize(torch.randn(2, CLIPS, OUT), dim=2)
    items = [item_of(model, 10.0 * i, 2, i, clips=clips[i])[0] for i in range(2)]
    sound, _ = tensors_of(model.answer_prompt(items, "Why?"))
    chosen = torch.cat([*clips])[[0, 2, 4, 6, 9, 11, 13, 15]]
    expected = reference.sound(list(chosen.double().numpy()), w)
    np.testing.assert_allclose(sound, expected, atol=2e-3)


# -- faults and their options --


def test_the_last_frame_is_read_unless_the_published_rule_is_asked_for(opened):
    patches = [torch.full((SIDE, SIDE, 3), i, dtype=torch.uint8) for i in range(8)]
    frames = SegmentFrames(0, patches, [i / 7 for i in range(8)], [float(i) for i in range(8)])
    times = {
        reach: model.unpack(model.encode_segment(frames, torch.zeros(0, 0), None).tokens).after
        for reach in ("end", "floor")
        for model in [opened(reach=reach, frames=3, kept_frames=3)]
    }
    assert times == {"end": [0.0, 4.0, 7.0], "floor": [0.0, 2.0, 5.0]}


@pytest.mark.heavy
def test_clips_reach_the_end_unless_the_published_rule_is_asked_for(opened):
    samples = np.zeros(10 * RATE, np.float32)
    samples[-RATE:] = noise(1.0)[0]  # something in the last second alone
    silent = np.zeros(10 * RATE, np.float32)
    for reach, hears in (("end", True), ("floor", False)):
        model = opened(clip_reach=reach)
        ends = [model.hear(window_of(s).scene(0.0, 10.0))[-1] for s in (samples, silent)]
        assert torch.allclose(*ends) != hears


@pytest.mark.heavy
def test_overlapping_clips_lose_their_own_mean_unless_the_published_rule_is_asked_for(opened, w):
    samples = noise(5.0)[0] + np.linspace(0, 1, 5 * RATE, dtype=np.float32)
    starts = clip_starts(5 * RATE)
    whole, expected = torch.from_numpy(samples.copy()), {"own": [], "in_place": []}
    for start in starts:
        own = torch.from_numpy(samples[start : start + 2 * RATE])
        expected["own"].append(spectrogram(own))
        view = whole[start : start + 2 * RATE]
        view -= view.mean()
        expected["in_place"].append(spectrogram(view.clone(), mean=0.0))
    assert not torch.allclose(expected["own"][1], expected["in_place"][1], atol=1e-3)
    for means, made in expected.items():
        heard = opened(clip_means=means).hear(window_of(samples).scene(0.0, 5.0))
        wanted = [reference.clip(each[0].double().numpy(), w) for each in made]
        np.testing.assert_allclose(heard, wanted, atol=1e-4)


@pytest.mark.heavy
def test_all_channels_are_heard_unless_the_published_rule_is_asked_for(opened, tmp_path):
    left, right = noise(4.0, seed=1), noise(4.0, seed=2)
    path = write_film(tmp_path / "film.mkv", sound=np.vstack([left, right]), layout="stereo")
    for channels, heard in (("mixed", (left + right)[0] * 0.5**0.5), ("first", left[0])):
        model = opened(channels=channels)
        session = Session(model, defaults_of(model))
        assert session.config.channels == channels
        list(watch(session, str(path), WatchOptions(captions=False)))
        expected = model.hear(window_of(heard[: 2 * RATE]).scene(0.0, 2.0))
        torch.testing.assert_close(clips_of(model, session)[0], expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize("answers", ["apart", pytest.param("reread", marks=pytest.mark.heavy)])
def test_a_prompt_beyond_its_room_loses_the_weakest_evidence_or_its_beginning(opened, answers):
    items = [
        item_of(opened(), 10.0 * i, 2, i, score=score)[0]._replace(caption=f"{i} " * 40)
        for i, score in enumerate((0.9, 0.2, 0.8))
    ]
    items = [item._replace(tokens=item.tokens if i else None) for i, item in enumerate(items)]
    fitted, cut, whole = (
        opened(answers=answers, **more)
        for more in ({"max_tokens": 200}, {"max_tokens": 200, "fit": "front"}, {})
    )
    length = lambda model, prompt: len(model.language.embed(prompt))  # noqa: E731
    assert 200 < length(whole, whole.answer_prompt(items, "Why?")) <= 1700
    prompt = fitted.answer_prompt(items, "Why?")
    kept = [item for item in items if item.score > 0.5]
    while length(whole, whole.answer_prompt(kept, "Why?")) > 200:
        kept.pop(min(range(len(kept)), key=lambda place: kept[place].score))
    assert texts_of(prompt) == texts_of(whole.answer_prompt(kept, "Why?"))
    assert length(fitted, prompt) <= 200
    parents = cut.answer_prompt(items, "Why?")
    expected = whole.language.embed(whole.answer_prompt(items, "Why?"))[-200:]
    torch.testing.assert_close(cut.language.embed(parents), expected)
    long = "Why? " * 300  # a question is never cut
    assert texts_of(fitted.answer_prompt(items, long))[-1].endswith(f"{long} [/INST]")


def test_vicunas_replies_end_before_the_next_turn(opened):
    vicuna, llama = opened(chat="vicuna"), opened()
    assert vicuna.language.stops == ("###",) and llama.language.stops == ()
    item = EvidenceItem(0, 1, vicuna.pack(Kept(torch.randn(2, Q, W), [0.0, 1.0], None)))
    first, last = texts_of(vicuna.caption_prompt(item))
    assert first == "###Human: <Video>" and last.endswith("###Assistant:")


def test_the_parent_as_published_takes_its_words_from_its_own_files(opened, tmp_path, monkeypatch):
    from streammem.models.video_llama import video_llama
    from tests.models.video_llama.test_prompts import written

    monkeypatch.setattr(video_llama, "SYSTEM", written(tmp_path, "You see."))
    options = as_published(str(tmp_path))
    assert (options.sound_scale, options.clip_means, options.reach) == ("used", "in_place", "floor")
    for listens, system in ((False, "You see."), (True, "")):
        model = opened(listens=listens, words="published", parent=str(tmp_path))
        item = EvidenceItem(0, 1, model.pack(Kept(torch.randn(2, Q, W), [0.0, 1.0], None)))
        assert f"<<SYS>>\n{system}\n<</SYS>>" in texts_of(model.caption_prompt(item))[0]
    picture = np.zeros((40, 60, 3), np.uint8)
    prompt = model.see(picture, "What?")
    assert texts_of(prompt) == [
        "[INST] <<SYS>>\nYou see.\n<</SYS>>\n\n<Image>", "</Image>  What? [/INST]",
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{"frames": 9}, {"kept_frames": 9}, {"reach": "far"},
                                     {"heads": 0}, {"heads": 3}, {"max_tokens": 0},
                                     {"channels": "left"}, {"weights": "some"}])  # fmt: skip
def test_options_that_cannot_be_met_are_refused(opened, options):
    with pytest.raises(ConfigError):
        opened(**options)


# -- sound of every kind --


KINDS = {
    "mono": {"sound": noise(4.0)},
    "5.1": {"sound": noise(4.0, 48000, channels=6), "rate": 48000, "layout": "5.1"},
    "8 kHz": {"sound": noise(4.0, 8000), "rate": 8000},
    "silent": {"sound": np.zeros((1, 4 * RATE), np.float32)},
    "shorter than 2 s": {"sound": noise(1.0)},
    "longer than the picture": {"sound": noise(9.0)},
    "missing": {},
}


@pytest.mark.parametrize(
    "kind",
    [k if k in ("5.1", "missing") else pytest.param(k, marks=pytest.mark.heavy) for k in KINDS],
)
def test_sound_of_every_kind_is_heard_scene_by_scene(model, tmp_path, kind):
    path = write_film(tmp_path / "film.mkv", **KINDS[kind])
    session = session_of(model, sound="notice")
    given = list(watch(session, str(path)))
    segments = [event for event in given if isinstance(event, Segment)]
    notices = [event.message for event in given if isinstance(event, Notice)]
    assert [(s.start, s.end) for s in segments] == [(0.0, 2.0), (2.0, 4.0)]
    clips = [model.unpack(session.tokens(s.id)).clips for s in segments]
    heard = [clip is not None for clip in clips]
    if kind == "missing":
        assert heard == [False, False]
        assert notices == [f"{path}: has no sound: scenes are described without sound from here on"]
        return
    assert notices == []
    assert heard == ([True, False] if kind == "shorter than 2 s" else [True, True])
    # A clip is the two seconds of the scene itself, at 16 kHz and of one channel.
    whole = np.concatenate([samples for _, samples in pieces(file_sound(str(path), path.name))])
    for segment, clip in zip(segments, clips, strict=True):
        if clip is not None:
            part = whole[int(segment.start * RATE) : int(segment.end * RATE)]
            expected = model.hear(window_of(part).scene(0.0, 2.0))
            torch.testing.assert_close(clip, expected, atol=2e-2, rtol=0)


def test_a_source_without_sound_is_silent_about_it_where_asked(model, tmp_path):
    path = write_film(tmp_path / "film.mkv")
    given = list(watch(session_of(model, sound="silent"), str(path)))
    assert not [event for event in given if isinstance(event, Notice)]
    assert defaults_of(model).sound == "notice"
    with pytest.raises(ConfigError, match="give off, notice or silent"):
        SessionConfig(sound="loud")


def clips_of(model, session):
    return [model.unpack(session.tokens(i)).clips for i in range(len(session.memory))]


@pytest.mark.parametrize("kind", ["concat", pytest.param("growing", marks=pytest.mark.heavy)])
def test_the_sound_of_joined_files_is_heard_where_each_of_them_stands(model, tmp_path, kind):
    # Pictures last 4 s; of what sounds longer the next one is not late.
    films = {"a": noise(4.06), "b": None, "c": noise(2.5, seed=1), "d": noise(9.0, seed=2)}
    alone = []
    for number, (name, sound) in enumerate(films.items()):
        path = write_film(tmp_path / f"{name}.mkv", sound=sound)
        os.utime(path, (1e9 + 4 * number,) * 2)
        with session_of(model, sound="silent") as session:
            list(watch(session, str(path)))
            alone += clips_of(model, session)
    listed = tmp_path / "all.txt"
    listed.write_text("a.mkv\nb.mkv\nc.mkv\nd.mkv\n")
    session = session_of(model, sound="notice")
    given = list(watch(session, f"concat:{listed}" if kind == "concat" else f"growing:{tmp_path}"))
    notices = [event.message for event in given if isinstance(event, Notice)]
    assert len(notices) == 1 and "b.mkv: has no sound" in notices[0]
    assert [entry.end for entry in session.memory.entries()] == [2.0 * n for n in range(1, 9)]
    for heard, expected in zip(clips_of(model, session), alone, strict=True):
        assert (heard is None) == (expected is None)
        if heard is not None:
            torch.testing.assert_close(heard, expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize("sounds", ["imagebind", pytest.param(None, marks=pytest.mark.heavy)])
def test_a_live_source_is_heard_scene_by_scene_beside_a_recogniser(model, monkeypatch, sounds):
    """Sound that comes with the frames reaches the model and the listener alike."""
    speech = noise(SCENES[-1].time + SCENES[-1].duration)[0]
    heard = Planted()
    monkeypatch.setattr("streammem.engine.speech.sound_events", lambda folder: lambda: heard)
    session = session_of(model, sound="notice")
    options = WatchOptions(drop="never", speech=SpeechOptions(sounds=sounds))
    given = list(watch(session, Camera(SCENES, speech), options))
    assert not [event for event in given if isinstance(event, Notice)]
    assert len(session.memory) == 4
    for entry, clips in zip(session.memory.entries(), clips_of(model, session), strict=True):
        part = speech[round(entry.start * RATE) : round(entry.end * RATE)]
        expected = model.hear(window_of(part).scene(0.0, entry.end - entry.start))
        torch.testing.assert_close(clips, expected, atol=2e-2, rtol=0)
    assert heard.read == (len(speech) if sounds else 0)


@pytest.mark.heavy
def test_a_pipe_is_heard_on_the_clock_of_its_pictures(model, tmp_path):
    sound = noise(6.0, 48_000)
    path = write_film(tmp_path / "film.ts", seconds=6.0, sound=sound, rate=48_000, codec="mp2")
    clips = []
    for source in (str(path), live([path], Sampling(fps=2.0, max_side=640))):
        session = session_of(model, sound="notice")
        list(watch(session, source, WatchOptions(drop="never")))
        clips.append(clips_of(model, session))
    assert [len(each) for each in clips] == [2, 2]
    for ours, files in zip(clips[1], clips[0], strict=True):
        torch.testing.assert_close(ours, files, atol=5e-2, rtol=0)


def test_a_live_source_without_sound_is_described_and_a_notice_tells_it(model, tmp_path):
    path = write_film(tmp_path / "film.ts")
    session = session_of(model, sound="notice")
    given = list(watch(session, live([path], Sampling(fps=2.0)), WatchOptions(drop="never")))
    assert sum("has no sound" in e.message for e in given if isinstance(e, Notice)) == 1
    assert clips_of(model, session) == [None, None]


@pytest.mark.heavy
def test_sound_changes_what_is_said(model, tmp_path):
    texts = []
    for number, options in enumerate((KINDS["mono"], {})):
        path = write_film(tmp_path / f"{number}.mkv", **options)
        session = session_of(model, sound="silent")
        given = list(watch(session, str(path)))
        texts.append([event.text for event in given if hasattr(event, "confidence")])
    assert all(map(all, texts)) and texts[0] != texts[1]


# -- sessions --


def test_streaming_equals_each_scene_by_itself(model, w):
    session = session_of(model)
    said = told(session, SCENES)[1::2]
    assert [e.frames for e in session.memory.entries()] == [5, 8, 6, 7]
    start = 0
    for number, count in enumerate((5, 8, 6, 7)):
        scene = SCENES[start : start + count]
        expected = [reference.frame(squeezed(frame.pixels), w) for frame in scene]
        kept = model.unpack(session.tokens(number))
        np.testing.assert_allclose(kept.frames, expected, atol=STORED)
        assert kept.after == [round(f.time - scene[0].time, 1) for f in scene]
        start += count
    assert all(caption.text for caption in said)


@pytest.mark.heavy
def test_a_memory_goes_on_after_it_was_closed_and_is_refused_to_other_options(opened, tmp_path):
    model, path = opened(), tmp_path / "memory"
    texts = [caption.text for caption in told(session_of(model), SCENES)[1::2]]
    said = []
    with session_of(model, path) as session:
        said += told(session, SCENES[:13])[1::2]
    with session_of(model, path) as session:
        said += told(session, SCENES[13:])[1::2]
        assert len(session.memory) == 4
    assert [caption.text for caption in said] == texts
    with pytest.raises(StoreError, match="another model"):
        session_of(opened(kept_frames=2), path)


def test_a_whole_video_is_one_prompt_of_eight_frames_by_the_parents_rule(opened, w):
    session = open_by_cuts(
        opened(cuts="whole", reach="floor"), SessionConfig(caption=SHORT, answer=SHORT), finite=True
    )
    frames = film(("red", 40), ("blue", 37), ("green", 23))
    assert not [segment for frame in frames for segment in session.push(frame)]
    (segment,) = session.flush()
    read = [frames[i] for i in (0, 12, 25, 37, 50, 62, 75, 87)]  # floor(i * 100 / 8)
    prompt = session.captioner.prompt(session.request(segment))
    (shown,) = tensors_of(prompt)
    expected = reference.video([reference.frame(squeezed(f.pixels), w) for f in read], w)
    np.testing.assert_allclose(shown, expected, atol=2e-3)
    times = ", ".join(str(round(frame.time, 1)) for frame in read)
    assert f"contains 8 frames sampled at {times} seconds. " in texts_of(prompt)[1]
    assert session.caption(segment).text and session.ask("What is red?").text


def test_a_whole_video_is_read_of_what_ends_and_streaming_can_be_asked_for(opened, heard_film):
    model = opened(cuts="whole")
    config = SessionConfig(caption=SHORT, sound="notice")
    with pytest.raises(ConfigError, match="no end that is known"):
        open_by_cuts(model, config, finite=False)
    session = open_by_cuts(model, config, finite=True)
    given = [e for e in watch(session, str(heard_film)) if isinstance(e, Segment)]
    assert [(s.start, s.end) for s in given] == [(0.0, 4.0)]
    assert model.unpack(session.tokens(0)).clips is not None
    streaming = SessionConfig(caption=SHORT, cuts="streaming")
    assert type(open_by_cuts(model, streaming, finite=False)) is Session


# -- the command line --


@pytest.fixture
def heard_film(tmp_path):
    return write_film(tmp_path / "film.mkv", sound=noise(4.0))


def test_the_command_line_captions_asks_and_finds_in_a_file_with_sound(
    run, folder, heard_film, tmp_path
):
    model = published.toml(folder, tmp_path / "model.toml")
    quick = ("--model", model, "--format", "jsonl", "--max-new-tokens", "6")
    code, out, err = run("caption", heard_film, *quick)
    assert (code, err) == (0, "")
    captions = events(out)
    assert [(c["start"], c["end"]) for c in captions] == [(0.0, 2.0), (2.0, 4.0)]
    assert len({c["text"] for c in captions}) == 2 and all(c["text"] for c in captions)
    memory = tmp_path / "memory"
    code, out, err = run("ask", heard_film, "What is red?", *quick, "--memory", memory)
    (answer,) = events(out)
    assert (code, err) == (0, "") and answer["text"] and len(answer["evidence"]) == 2
    code, out, err = run("ask", memory, "What is red?", *quick)
    (again,) = events(out)
    assert (code, err) == (0, "") and again["text"] and len(again["evidence"]) == 2
    code, out, err = run("find", memory, "something red", *quick)
    assert (code, err) == (0, "") and len(events(out)) == 2


def test_a_broken_checkpoint_is_one_line_and_exit_1(run, files, heard_film, tmp_path):
    changed = {**files["pictures.pth"]}
    del changed["llama_proj.bias"]
    part = published.write(tmp_path / "x", files | {"pictures.pth": changed})
    code, out, err = run("caption", heard_film, "--model", published.toml(part))
    assert (code, out) == (1, "")
    assert err.count("\n") == 1 and "1 missing: llama_proj.bias" in err


KILLED = """
import os, signal, sys
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import watch
from streammem.models import checkpoint
from streammem.models.backbones.language import GenerationConfig
from streammem.types import Segment
from tests.tiny import tiny_model

checkpoint.load_own = lambda name="", *, device="cpu": tiny_model()
model = checkpoint.load_checkpoint(sys.argv[1])
short = GenerationConfig(max_new_tokens=8)
config = SessionConfig(caption=short, answer=short, still=0.0, sound="notice")
session = Session(model, config, memory=sys.argv[3])
for event in watch(session, sys.argv[2]):
    if isinstance(event, Segment):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.heavy
def test_a_memory_survives_a_kill_with_what_was_seen_and_heard(model, folder, heard_film, tmp_path):
    toml, memory = published.toml(folder, tmp_path / "model.toml"), tmp_path / "memory"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, toml, heard_film, memory],
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    whole = session_of(model, sound="notice")
    list(watch(whole, str(heard_film)))
    with session_of(model, memory, sound="notice") as session:
        assert len(session.memory) >= 1
        kept, expected = (model.unpack(s.tokens(0)) for s in (session, whole))
        torch.testing.assert_close(kept.frames, expected.frames)
        torch.testing.assert_close(kept.clips, expected.clips)
        assert session.ask("What is red?").text
