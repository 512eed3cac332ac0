"""Videos that are read as a whole, as the parent reads them: ``cuts`` other than ``streaming``."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig, defaults_of
from streammem.engine.watch import watch
from streammem.engine.whole_video import (
    VideoBuffer,
    WholeVideoSession,
    chosen_cuts,
    open_by_cuts,
)
from streammem.errors import ConfigError
from streammem.models import checkpoint
from streammem.models.backbones.language import GenerationConfig
from streammem.models.published import find
from streammem.models.videollamb.offline import choose
from streammem.models.videollamb.options import PUBLISHED
from streammem.models.videollamb.videollamb import CAPTION_REQUEST
from streammem.perception.frames import Perceived
from streammem.perception.scenetilling import SceneTillingConfig
from streammem.types import Caption, Segment
from tests.command_line import events
from tests.models.videollamb import published, reference
from tests.tiny import film

SHORT = GenerationConfig(max_new_tokens=12)
FILM = film(("red", 7), ("blue", 9), ("green", 5), ("white", 8), ("black", 4))  # 33 frames
TOWER = "model.video_tower.video_tower."


@pytest.fixture(scope="module")
def parent(opened):
    """The tiny checkpoint with all options of `videollamb-7b-published`."""
    own = {f.name: getattr(PUBLISHED, f.name) for f in dataclasses.fields(PUBLISHED)}
    return opened(**own | published.OPTIONS)


def session_of(model, **options):
    config = SessionConfig(caption=SHORT, answer=SHORT, **options)
    return open_by_cuts(model, config, finite=True)


def whole_of(model, frames, **options):
    session = session_of(model, **options)
    assert [closed for frame in frames for closed in session.push(frame)] == []
    return session, session.flush()


def parents_reading(model, frames, w):
    """What the parent makes of a video, in numpy: chosen frames, their segments, what is shown."""
    places = [int(i) for i in np.linspace(0, len(frames) - 1, min(16, len(frames) // 8 * 8))]
    pixels = np.stack([model.perceive(frames[i].pixels).patches.numpy() for i in places])
    features = reference.tower(pixels, w, TOWER, layers=published.LAYERS, group=published.GROUP)
    lasts = reference.segment(features[:, 0], k=3)
    spans = list(zip([0, *(last + 1 for last in lasts[:-1])], lasts, strict=True))
    segments = [
        np.concatenate([reference.pool(features[i, 1:], 3) for i in reference.frames_of(*span)])
        for span in spans
    ]
    return places, spans, reference.bridge_video(segments, w)[0]


def words(model, shown, request):
    prompt = model.prompt([torch.from_numpy(shown).float()], request)
    return model.language.generate([prompt], SHORT)[0]


def test_captions_and_answers_are_the_parents_words(parent, w):
    places, spans, shown = parents_reading(parent, FILM, w)
    session, segments = whole_of(parent, FILM)
    assert [s.start for s in segments] == [FILM[places[first]].time for first, _ in spans]
    said = [session.caption(segment).text for segment in segments]
    assert said == [words(parent, tokens, CAPTION_REQUEST) for tokens in shown]
    assert len(set(said)) > 1
    answer = session.ask("What is white?")
    assert answer.text == words(parent, shown[-1], "What is white?")
    assert answer.method == "model" and {e.segment for e in answer.evidence} == {0, 1, 2, 3}


def test_nothing_in_a_question_changes_what_the_language_model_sees(parent, w):
    """Not a count, not a time, not its length: of these a session of a stream makes something."""
    session, _ = whole_of(parent, FILM)
    shown = parents_reading(parent, FILM, w)[2][-1]
    for question in ("How often is red seen?", "What is at 0:02?", "Which? " * 150):
        assert session.ask(question).text == words(parent, shown, question)


def test_segments_are_contiguous_to_the_end_whatever_the_number_of_frames(parent):
    for count in (1, 2, 3, 7, 8, 9, 16, 17, 33):
        _, segments = whole_of(parent, FILM[:count])
        assert len(segments) == (1 if count == 1 else 4)
        assert segments[0].start == 0 and segments[-1].end == FILM[count - 1].time + 0.5
        assert all(left.end == right.start for left, right in pairwise(segments))
        assert all(segment.start < segment.end for segment in segments)
        assert [s.reason for s in segments] == ["cut"] * (len(segments) - 1) + ["end"]


def test_a_second_video_begins_anew_in_the_same_memory(parent):
    session, first = whole_of(parent, FILM)
    rows = [session.request(segment).tokens for segment in first]
    assert session.flush() == ()
    for frame in FILM:
        session.push(dataclasses.replace(frame, time=frame.time + 100))
    second = session.flush()
    assert [s.id for s in second] == [4, 5, 6, 7] and len(session.memory) == 8
    again = [session.request(segment).tokens for segment in second]
    assert torch.equal(torch.stack(again), torch.stack(rows))
    assert {e.segment for e in session.ask("What?").evidence} == {4, 5, 6, 7}


def test_watching_a_file_captions_each_segment_after_its_end(parent, video):
    session = session_of(parent)
    seen = list(watch(session, video))
    assert [type(e) for e in seen if isinstance(e, Segment | Caption)].count(Caption) == 4
    first = next(i for i, e in enumerate(seen) if isinstance(e, Segment))
    assert session.num_frames == 20 and first == 0
    assert seen[-1].end == 10.0


def test_every_frame_is_perceived_anew_and_like_segments_stay_apart(parent):
    still = [dataclasses.replace(FILM[0], time=i / 2) for i in range(16)]
    session, segments = whole_of(parent, still)
    assert len(segments) == len(session.memory) == 4


def test_no_tower_sees_a_frame_that_arrives(parent):
    assert parent.options.scene_features == "tower"
    calls = []
    towers = (parent.image_tower, parent.video_tower)
    hooks = [t.register_forward_hook(lambda _, given, out: calls.append(len(out))) for t in towers]
    session = session_of(parent)
    for frame in FILM:
        session.push(frame)
    assert calls == []
    session.flush()
    assert calls == [16]
    for hook in hooks:
        hook.remove()


# -- how many frames wait --


def test_a_buffer_keeps_frames_evenly_within_its_bound_and_the_newest():
    buffer = VideoBuffer(8)
    nothing = Perceived(np.zeros(1), torch.zeros(1), np.zeros(1, np.float32))
    for number, frame in enumerate(film(("red", 100))):
        buffer.push(frame, nothing)
        numbers = [held.number for held in buffer.frames]
        assert len(numbers) <= 9 and numbers[-1] == number == buffer.num_frames - 1
        steps = {after - before for before, after in pairwise(numbers[:-1])}
        assert len(steps) <= 1 and numbers[0] == 0
        if number >= 8:
            assert len(numbers) > 4 and numbers[-1] - numbers[-2] <= min(steps)


def test_a_video_longer_than_its_frames_is_read_evenly(opened):
    model = opened(groups="stream", cuts="top3", frames=20)
    assert choose(model, 100) == [int(i) for i in np.linspace(0, 99, 16)]  # of 20, in eights
    assert choose(model, 3) == [0, 0, 0, 0, 1, 1, 1, 2]
    assert choose(model, 1) == [0]
    assert choose(opened(cuts="top3", frames=20), 100) == [int(i) for i in np.linspace(0, 99, 20)]


# -- which sessions do it --


def test_cuts_of_a_session_go_before_the_models(opened, keys):
    model = opened()
    assert type(session_of(model)) is Session
    whole = session_of(model, cuts="top3")
    assert isinstance(whole, WholeVideoSession) and whole.model.options.cuts == "top3"
    assert type(session_of(opened(cuts="top3"), cuts="streaming")) is Session
    assert chosen_cuts(keys) == "streaming"
    with pytest.raises(ConfigError, match="reads no whole videos"):
        session_of(keys, cuts="top3")
    with pytest.raises(ConfigError, match="cuts='top4'"):
        SessionConfig(cuts="top4")


def test_a_source_without_end_is_refused(opened):
    with pytest.raises(ConfigError, match=r"no end.*--set cuts=streaming"):
        open_by_cuts(opened(cuts="top3"), SessionConfig(), finite=False)


@pytest.mark.parametrize("name", ["videollamb-7b-published", "videollamb-mem"])
def test_a_preset_brings_what_its_streams_need(opened, name):
    own = dataclasses.replace(opened(), session=find(name, checkpoint.CONFIGS).session)
    config = defaults_of(own)
    assert (config.now_frames, config.epsilon, config.retrieved) == (8, 0.0, 4096)
    assert defaults_of(opened()).now_frames == SessionConfig().now_frames


def test_segments_that_look_alike_stay_apart_where_epsilon_is_0(opened):
    model = opened()
    still = [dataclasses.replace(FILM[0], time=i / 2) for i in range(16)]
    scenes = SceneTillingConfig(max_frames=4, min_frames=2, max_lag=2, flash_frames=1)
    counts = []
    for changes in ({}, {"epsilon": 0.0}):
        session = Session(model, SessionConfig(scenes=scenes, **changes))
        closed = [s for frame in still for s in session.push(frame)] + list(session.flush())
        counts.append((len(closed), len(session.memory)))
    assert counts == [(4, 1), (4, 4)]


# -- the command line --


@pytest.fixture
def presets(folder, tmp_path):
    """TOML files of the tiny checkpoint: with our defaults, and with the published options."""
    text = (checkpoint.CONFIGS / "videollamb-7b-published.toml").read_text()
    names = {"ours": "weights = ''\n[options]\n", "theirs": text}
    for name, lines in names.items():
        kept = [line for line in lines.splitlines() if not line.startswith("weights")]
        at = kept.index("[options]") + 1
        (tmp_path / f"{name}.toml").write_text(
            "\n".join([f"weights = '{folder}'", *kept[:at], "pool = 3", *kept[at:]])
        )
    return tmp_path


QUICK = ("--format", "jsonl", "--max-new-tokens", "6")


def test_the_command_line_reads_a_file_as_a_whole(run, presets, video):
    theirs = ("--model", presets / "theirs.toml", *QUICK)
    code, out, err = run("caption", video, *theirs)
    assert (code, err) == (0, "")
    captions = events(out)
    assert len(captions) == 4 and all(c["text"] for c in captions)
    code, out, _ = run("scenes", video, *theirs[:4])
    assert [s["start"] for s in events(out)] == [c["start"] for c in captions]
    code, out, _ = run("caption", video, "--model", presets / "ours.toml", *QUICK)
    assert len(events(out)) == 3
    arguments = ("--model", presets / "ours.toml", "--set", "cuts=top3", *QUICK)
    assert len(events(run("caption", video, *arguments)[1])) == 4
    assert len(events(run("caption", video, *theirs, "--set", "cuts=streaming")[1])) != 4


def test_the_command_line_asks_of_the_whole_file_and_later_of_its_memory(
    run, presets, video, tmp_path
):
    theirs = ("--model", presets / "theirs.toml", *QUICK)
    code, out, err = run("ask", video, "What is red?", *theirs, "--memory", tmp_path / "m")
    (answer,) = events(out)
    assert (code, err) == (0, "") and answer["text"] and len(answer["evidence"]) == 4
    code, out, err = run("ask", tmp_path / "m", "What is red?", *theirs)
    assert (code, err) == (0, "") and events(out)[0]["text"]


def test_the_other_commands_take_a_whole_file_too(run, presets, video, tmp_path):
    theirs = ("--model", presets / "theirs.toml", "--max-new-tokens", "4")
    code, _, err = run("caption", video, *theirs, "--sheet", tmp_path / "sheet.png")
    assert code == 0 and (tmp_path / "sheet.png").is_file(), err
    assert run("find", video, "something red", *theirs)[0] == 0
    assert run("summary", video, *theirs)[0] == 0
    still = tmp_path / "still.png"
    Image.fromarray(FILM[0].pixels).save(still)
    code, out, _ = run("caption", still, *theirs, "--format", "jsonl")
    assert code == 0 and len(events(out)) == 1 and events(out)[0]["text"]


def test_the_command_line_refuses_live_sources_and_servers(run, presets, video):
    model = ("--model", presets / "theirs.toml")
    code, _, err = run("watch", "rtsp://127.0.0.1:1/x", *model)
    assert code == 2 and "give --set cuts=streaming" in err
    code, _, err = run("serve", "--port", "0", *model)
    assert code == 2 and "a server's sessions are streams" in err


def test_help_says_what_cuts_does(run, capsys):
    with pytest.raises(SystemExit):
        run("caption", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "cuts=top3 or threshold reads a file as a whole, so that captions come after its" in text
