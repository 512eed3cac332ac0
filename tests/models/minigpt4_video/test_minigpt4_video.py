"""Behind sessions: prompts to the token, streams, whole videos, clips, the command line."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.whole_video import ClipSession, open_by_cuts
from streammem.errors import ConfigError
from streammem.models.backbones.language import GenerationConfig
from streammem.models.minigpt4_video.minigpt4_video import CAPTION_REQUEST
from streammem.models.minigpt4_video.options import MiniGPT4Options
from streammem.models.protocols import ComposedModel, EvidenceItem
from streammem.perception.frames import SegmentFrames
from streammem.types import Note
from tests.command_line import events
from tests.models.minigpt4_video import published
from tests.models.minigpt4_video.conftest import CUES
from tests.models.videollamb.published import VOCABULARY
from tests.sessions import told
from tests.tiny import film

SHORT = GenerationConfig(max_new_tokens=6)
P, L = 4, published.L
TWO = film(("red", 8), ("blue", 8))
THREE = film(("red", 8), ("blue", 8), ("green", 8))
NOTES = (Note(0.5, 1.0, "one two"), Note(4.0, 4.5, "three"))
FULL = {"sampling": "floor", "subtitles": "plain", "prompt": "plain", "fit": "front"}


@pytest.fixture
def picked(opened):
    """Open the model anew with options, few frames to a prompt."""
    return lambda **options: opened(**{"frames": 6, "kept_frames": 3, **options})


def session_of(model, memory=None, **options):
    config = SessionConfig(**{"caption": SHORT, "answer": SHORT, "still": 0.0, **options})
    return open_by_cuts(model, config, memory=memory, finite=True)


class Words:
    """What is said in a stream, as a file's subtitles are."""

    notices = ()

    def __init__(self, notes):
        self.notes = notes

    def within(self, start, end):
        return tuple(note for note in self.notes if start <= note.start < end)


def ids_of(model, prompt):
    """Read a prompt back: the id of each embedding, and runs of vision as -1 for each token."""
    table = model.language.model.get_input_embeddings().weight
    nearest = torch.cdist(model.language.embed(prompt).double(), table.double())
    return [int(row.argmin()) if row.min() < 1e-6 else -1 for row in nearest]


def spelled(text):
    """A piece as SentencePiece reads it: a mark for each space, one before all, letters, bytes."""
    ids = []
    for sign in "▁" + text.replace(" ", "▁"):
        byte = [VOCABULARY[f"<0x{b:02X}>"] for b in sign.encode()]
        ids += [VOCABULARY[sign]] if sign in VOCABULARY else byte
    return ids


# -- prompts --


@pytest.mark.parametrize("style", [pytest.param("trained", marks=pytest.mark.heavy), "plain"])
def test_the_ids_of_a_hundred_random_prompts_are_by_the_stated_rules(picked, style):
    """BOS once or twice, pieces tokenised by themselves, frames of P tokens between them."""
    model = picked(prompt=style, frames=9, max_tokens=5000)
    rng = np.random.default_rng(0)
    letters = list("abc ÄÖ猫<>[]/\n")
    for _ in range(100):
        count = int(rng.integers(0, 9))
        frames = torch.randn(count, P, L) if count else None
        captions = [
            "".join(rng.choice(list("abc<Ä "), 5)) if rng.random() < 0.5 else ""
            for _ in range(count)
        ]
        question = "".join(rng.choice(letters, int(rng.integers(1, 20))))
        prompt = model.prompt(frames, captions, question)
        expected, piece = [1] * (1 if style == "trained" else 2), "[INST] "
        for number in range(count):
            expected += [*spelled(f"{piece}<Img>"), *[-1] * P]
            piece = f"<Cap>{captions[number]}" if captions[number] else ""
        end = "[/INST]" if style == "trained" else " [/INST]"
        assert ids_of(model, prompt) == [*expected, *spelled(f"{piece}\n{question}{end}")]


def test_a_special_token_that_is_typed_is_only_text(picked):
    ids = ids_of(picked(), picked().prompt(None, [], "a</s><s>b"))
    assert ids.count(1) == 1 and 2 not in ids
    parent = picked(typed="token")  # which reads an end and a beginning in it
    ids = ids_of(parent, parent.prompt(None, [], "a</s><s>b"))
    assert ids.count(1) == 2 and ids.count(2) == 1
    plain = [ids_of(m, m.prompt(None, [], "What?")) for m in (picked(), parent)]
    assert plain[0] == plain[1]


def test_a_prompt_beyond_its_room_shows_fewer_frames_or_loses_its_beginning(picked):
    frames, none = torch.randn(6, P, L), [""] * 6
    fitted, cut = picked(max_tokens=60), picked(max_tokens=60, fit="front")
    ids = ids_of(fitted, fitted.prompt(frames, none, "What?"))
    assert ids[0] == 1 and 0 < ids.count(-1) < 6 * P and 60 - 2 * P - 12 < len(ids) <= 60
    whole = ids_of(cut, picked().prompt(frames, none, "What?"))
    assert ids_of(cut, cut.prompt(frames, none, "What?")) == whole[-60:]


def test_evidence_is_one_row_of_frames_and_only_what_has_none_is_words(picked):
    model = picked()
    shown = model.pack([model.perceive(f.pixels).patches for f in TWO[:3]])
    items = [
        EvidenceItem(0, 2, shown, "not read", notes=(Note(0.1, 1, "first"),)),
        EvidenceItem(3, 4, None, "a caption", speech="some speech"),
        EvidenceItem(5, 9, shown, notes=(Note(8.5, 9, "last"),)),
    ]
    ids = ids_of(model, model.answer_prompt(items, "Q?"))
    captions = ["", "first ", "", "", "", "last "]
    expected, piece = [1], "[INST] "
    for caption in captions:
        expected += [*spelled(f"{piece}<Img>"), *[-1] * P]
        piece = f"<Cap>{caption}" if caption else ""
    assert ids == [*expected, *spelled(f"{piece}\na caption\nsome speech\nQ?[/INST]")]


# -- streams --


def test_a_memory_keeps_frames_as_the_language_model_takes_them(picked):
    model = picked()
    session = session_of(model)
    for frame in TWO:
        session.push(frame)
    session.flush()
    assert [entry.frames for entry in session.memory.entries()] == [8, 8]
    chosen = [model.perceive(TWO[i].pixels).patches for i in (0, 4, 7)]
    expected = model.encoder(torch.stack(chosen)).flatten(0, 1)
    torch.testing.assert_close(session.tokens(0), expected, atol=3e-2, rtol=0)
    assert model.token_shape == (3 * P, L) and session.recurrent.shape == (0, 0)


def test_what_is_said_in_a_scene_stands_in_its_caption_and_in_answers(picked, monkeypatch):
    model = picked()
    session = session_of(model, passages=2, now_frames=0)
    session.speech = Words(NOTES)
    for frame in TWO:
        session.push(frame)
    session.flush()
    prompts, plain = [], type(model).prompt
    monkeypatch.setattr(
        type(model), "prompt", lambda *given: prompts.append(plain(*given)) or prompts[-1]
    )
    for segment in range(2):
        session.caption(session.memory.get(segment) and _segment(session, segment))
    session.ask("What is red?")
    texts = ["".join(part for part in prompt if isinstance(part, str)) for prompt in prompts]
    assert "one two" in texts[0] and "three" not in texts[0] and CAPTION_REQUEST in texts[0]
    assert "three" in texts[1] and "one two" not in texts[1]
    assert texts[2].index("one two") < texts[2].index("three") < texts[2].index("What is red?")


def _segment(session, number):
    from streammem.types import Segment

    entry = session.memory.get(number)
    return Segment(number, entry.start, entry.end, None, None)


def test_a_stream_interrupted_anywhere_says_what_it_says_in_one_piece(picked):
    model = picked()
    whole = [str(e) for e in told(session_of(model), TWO)]
    for cut in (3, 11):
        first, second = session_of(model), session_of(model)
        said = []
        for frame in TWO[:cut]:
            for segment in first.push(frame):
                said += [segment, first.caption(segment)]
        second.memory = first.memory
        second.restore(first.snapshot())
        said += told(second, TWO[cut:])
        assert [str(e) for e in said] == whole


KILLED = """
import os, signal, sys
from pathlib import Path
from streammem.models.minigpt4_video.published import open_model
from streammem.models.published import find
from tests.models.minigpt4_video.test_minigpt4_video import THREE, session_of
from tests.tiny import tiny_model

model = open_model("tiny", find(sys.argv[1], Path(".")), tiny_model())
session = session_of(model, Path(sys.argv[2]))
for frame in THREE:
    for segment in session.push(frame):
        session.caption(segment)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.heavy
def test_a_killed_process_leaves_what_had_closed_and_the_next_goes_on(files, keys, tmp_path):
    from streammem.models.minigpt4_video.published import open_model
    from streammem.models.published import find

    run = [sys.executable, "-c", KILLED, str(files), str(tmp_path / "memory")]
    done = subprocess.run(run, env=dict(os.environ), timeout=120, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    model = open_model("tiny", find(files, tmp_path), keys)
    with session_of(model, tmp_path / "memory") as session:
        (row,) = session.memory.entries()
        assert row.caption and (row.start, row.end) == (0.0, 4.0)
        assert session.next_segment == 1
        told(session, THREE[8:])
        assert [e.segment for e in session.memory.entries()] == [0, 1, 2]
        assert session.ask("What is red?").text


# -- whole videos and clips --


def test_a_whole_video_is_one_prompt_by_the_parents_rules(picked):
    """45 of its frames are 6 here: every second of 16, until there are six; the end is lost."""
    model = picked(cuts="whole", **FULL)
    session = session_of(model)
    session.speech = Words([*NOTES, Note(7.0, 7.5, "never heard")])
    assert isinstance(session, ClipSession) and session.whole
    assert not any(map(session.push, TWO))
    (segment,) = session.flush()
    assert (segment.start, segment.end) == (0.0, 8.0)
    read = [model.perceive(TWO[i].pixels).patches for i in range(0, 12, 2)]
    frames = model.encoder(torch.stack(read))
    # "one two" begins between frames 0 and 2, "three" at frame 8.
    captions = ["", "one two ", "", "", "three ", ""]
    for request, said in (
        (CAPTION_REQUEST, session.caption(segment).text),
        ("What is red? How often?", session.ask("What is red? How often?").text),
    ):
        prompt = model.prompt(frames, captions, request)
        assert said == model.language.generate([prompt], SHORT)[0]


def test_by_default_a_whole_video_is_seen_and_heard_to_its_end(picked):
    model = picked(cuts="whole")
    session = session_of(model)
    session.speech = Words([*NOTES, Note(7.9, 8.5, "last words")])
    for frame in TWO:
        session.push(frame)
    (segment,) = session.flush()
    request = session.request(segment)
    assert request.times == tuple(TWO[i].time for i in (0, 3, 6, 9, 12, 15))
    assert "".join(note.text for note in request.notes) == "one two three last words "


def test_words_recognised_after_the_end_stand_in_the_answer(picked, monkeypatch):
    model = picked(cuts="whole")
    session = session_of(model)
    for frame in TWO:
        session.push(frame)
    session.flush()
    session.add_notes(0, NOTES)
    prompts, plain = [], type(model).prompt
    monkeypatch.setattr(
        type(model), "prompt", lambda *given: prompts.append(given[2]) or plain(*given)
    )
    session.ask("What?")
    assert "".join(prompts[-1]) == "one two three "


def test_clips_are_of_equal_length_whatever_they_show(picked):
    model = picked(cuts="clips", clip_s=3.0, sampling="floor", subtitles="goldfish")
    session = session_of(model)
    closed = [segment for frame in TWO for segment in session.push(frame)] + [*session.flush()]
    spans = [(s.start, s.end) for s in closed]
    assert spans == [(0.0, 3.0), (3.0, 6.0), (6.0, 8.0)]
    tokens = session.tokens(2).unflatten(0, (-1, P))  # 4 frames, the last repeated to 6
    assert len(tokens) == 6 and torch.equal(tokens[4], tokens[3])
    assert torch.equal(tokens[5], tokens[3]) and not torch.equal(tokens[2], tokens[3])


def test_cuts_that_cannot_be_are_refused(picked, keys):
    with pytest.raises(ConfigError, match="takes streaming, whole, clips"):
        session_of(picked(), cuts="top3")
    with pytest.raises(ConfigError, match=r"no end.*--set cuts=streaming"):
        open_by_cuts(picked(cuts="whole"), SessionConfig(), finite=False)
    plain = session_of(picked(cuts="whole"), cuts="streaming")
    assert type(plain) is Session and plain.model.token_shape == (3 * P, L)
    with pytest.raises(ConfigError, match="sampling=floor"):
        MiniGPT4Options(subtitles="plain")


# -- the command line --


def test_clips_of_a_memory_stand_beside_their_words_and_within_the_budget(picked):
    """Rules of the parent placed them where frames were chosen; found again, ours do."""
    model = picked(
        cuts="clips", clip_s=4.0, sampling="floor", subtitles="goldfish", words=3, prompt="plain"
    )
    session = session_of(model, now_frames=0)
    session.speech = Words((Note(0.5, 1.0, "one two"), Note(1.0, 1.2, "three"), *NOTES[1:]))
    told(session, TWO)
    items = session.answerer._items(session.memory.entries())
    text = "".join(p for p in model.answer_prompt(items, "Q?") if isinstance(p, str))
    # Twelve frames become six, so "three" joined what stands before it.
    assert text.count("<Cap>one three <") == text.count("<Cap>three <") == 1
    assert text.count("<Cap>") == 2 and "two" not in text


def test_another_model_may_answer_from_the_text_of_clips(picked, keys):
    mini = picked(cuts="clips", clip_s=3.0)
    composed = ComposedModel(
        "both", mini.fingerprint, mini, keys, mini, segment_encoder=mini, answer_generator=keys
    )
    session = session_of(composed, context="goldfish")
    assert isinstance(session, ClipSession) and len(told(session, TWO)) == 6
    answer = session.ask("What is red?")
    assert answer.text and len(answer.evidence) == 3
    plain = session_of(composed, cuts="streaming")
    assert plain.model.generator is plain.model.perceiver is plain.model.segment_encoder
    assert plain.model.generator.options.cuts == "streaming" and type(plain) is Session


def test_the_command_line_captions_and_answers_a_file_with_subtitles_and_sound(
    run, files, film_with_words, tmp_path
):
    quick = ("--model", files, "--format", "jsonl", "--max-new-tokens", "4")
    memory = tmp_path / "memory"
    code, out, err = run("caption", film_with_words, *quick, "--memory", memory)
    assert (code, err) == (0, "")
    rows = events(out)
    captions = [row for row in rows if "confidence" in row]
    assert [(c["start"], c["end"]) for c in captions] == [(0, 2), (2, 4), (4, 6)]
    assert all(c["text"] for c in captions)
    code, out, err = run("ask", memory, "What is red?", *quick)
    (answer,) = events(out)
    assert (code, err) == (0, "") and answer["text"]
    assert {item["speech"] for item in answer["evidence"]} == {text for *_, text in CUES}


@pytest.mark.parametrize("cuts", ["whole", pytest.param("clips", marks=pytest.mark.heavy)])
def test_the_command_line_reads_whole_videos_and_clips(run, files, film_with_words, cuts):
    quick = ("--model", files, "--format", "jsonl", "--max-new-tokens", "4")
    code, out, err = run("caption", film_with_words, *quick, "--set", f"cuts={cuts}")
    captions = [row for row in events(out) if "confidence" in row]
    assert (code, err) == (0, "") and [(c["start"], c["end"]) for c in captions] == [(0, 6)]
    code, out, err = run("ask", film_with_words, "Who?", *quick, "--set", f"cuts={cuts}")
    assert (code, err) == (0, "") and events(out)[0]["text"]


def test_a_broken_checkpoint_is_one_line_and_exit_1(run, film_with_words, tmp_path):
    own = published.random(published.own())
    del own["llama_proj.bias"]
    path = published.write(tmp_path / "x", own_tensors=own)
    code, out, err = run("caption", film_with_words, "--model", path)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1 and "1 missing: llama_proj.bias" in err


def test_the_present_is_read_with_the_past(picked):
    model = picked()
    session = session_of(model, now_frames=2)
    for frame in TWO[:12]:
        session.push(frame)
    item = session.answerer._present_item(session.present())
    patches = [model.perceive(frame.pixels).patches for frame in TWO[10:12]]
    expected = model.encode_segment(
        SegmentFrames(1, patches, (0.0, 1.0)), torch.zeros(0, 0), None
    ).tokens
    assert torch.equal(item.tokens, expected) and (item.start, item.end) == (5.0, 6.0)
