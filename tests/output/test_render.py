"""The bytes that other programs read: every format is parsed back by a small parser of its own."""

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammem.output.render import (
    FORMATS,
    Srt,
    Text,
    WebVtt,
    prometheus,
    stamped,
    to_json,
    to_line,
    wall_start,
)
from streammem.types import (
    Alert,
    Answer,
    Caption,
    Chapter,
    Evidence,
    Moment,
    Note,
    Notice,
    Segment,
    Stats,
    Step,
    Until,
)

EVIDENCE = Evidence("a.mp4", 3, 1.0, 2.5, 0.25, "k/3.jpg", "a dog", "woof")
EVENTS = [
    Segment(0, 0.0, 4.0, 0.5, "cut"),
    Caption(0, 0.0, 4.0, "A woman slices onions."),
    Note(1.0, 2.5, "Good morning"),
    Moment("a.mp4", 3, 1.0, 2.5, 0.25, rank=2),
    Answer("What?", "Onions.", True, "model", (EVIDENCE,)),
    Notice("the file is truncated"),
    Stats(10, 1, 1, 0.5, 2.0),
]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
SEPARATORS = st.sampled_from(["-->", "\n\n", "\r\n\r\n", "1\n", "<i>", "{\\an8}", "&lt;", "\u2028"])
NASTY_TEXTS = st.lists(TEXTS | SEPARATORS, max_size=6).map("".join)


def rendered(name, events):
    renderer = FORMATS[name]()
    return "".join(renderer.write(event) for event in events) + renderer.close()


def seconds_of(stamp, mark):
    match = re.fullmatch(rf"(\d\d+):([0-5]\d):([0-5]\d){re.escape(mark)}(\d\d\d)", stamp)
    assert match, stamp
    hours, minutes, seconds, ms = map(int, match.groups())
    return (hours * 3600_000 + minutes * 60_000 + seconds * 1000 + ms) / 1000


def cues_of(blocks, mark):
    """[(start, end, text)] of blocks that begin with a timing line."""
    cues = []
    for block in blocks:
        timing, *lines = block.split("\n")
        start, end = timing.split(" --> ")
        assert lines
        assert all(line.strip() for line in lines)
        assert not any("-->" in line for line in lines)
        cues.append((seconds_of(start, mark), seconds_of(end, mark), "\n".join(lines)))
    return cues


def parse_srt(text):
    assert text == "" or text.endswith("\n\n")
    blocks = [block.split("\n", 1) for block in text.split("\n\n")[:-1]]
    assert [number for number, _ in blocks] == [str(n + 1) for n in range(len(blocks))]
    return cues_of([block for _, block in blocks], ",")


def parse_vtt(text):
    header, *blocks = text.split("\n\n")
    assert header == "WEBVTT"
    assert blocks.pop() == ""
    cues = []
    for start, end, body in cues_of(blocks, "."):
        assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", body)
        plain = body.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        cues.append((start, end, plain))
    return cues


def words(text):
    """What a viewer reads: control and zero-width characters and the kind of space do not show."""
    return re.sub(r"[\x00-\x20\x7f-\x9f]+", " ", text.replace("\u200b", "")).split()


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            EVENTS[0],
            {"type": "segment", "id": 0, "start": 0.0, "end": 4.0, "depth": 0.5, "reason": "cut"},
        ),
        (
            EVENTS[1],
            {
                "type": "caption",
                "segment": 0,
                "start": 0.0,
                "end": 4.0,
                "text": "A woman slices onions.",
            },
        ),
        (EVENTS[2], {"type": "note", "start": 1.0, "end": 2.5, "text": "Good morning"}),
        (
            EVENTS[3],
            {
                "type": "moment",
                "source": "a.mp4",
                "segment": 3,
                "start": 1.0,
                "end": 2.5,
                "score": 0.25,
                "keyframe": None,
                "caption": None,
                "speech": None,
                "rank": 2,
                "matched": "picture",
                "cosine": None,
            },
        ),
        (
            EVENTS[4],
            {
                "type": "answer",
                "question": "What?",
                "text": "Onions.",
                "seen": True,
                "method": "model",
                "evidence": [
                    {
                        "source": "a.mp4",
                        "segment": 3,
                        "start": 1.0,
                        "end": 2.5,
                        "score": 0.25,
                        "keyframe": "k/3.jpg",
                        "caption": "a dog",
                        "speech": "woof",
                        "matched": "picture",
                        "cosine": None,
                    }
                ],
            },
        ),
        (EVENTS[5], {"type": "warning", "message": "the file is truncated"}),
        (
            EVENTS[6],
            {
                "type": "stats",
                "frames": 10,
                "segments": 1,
                "captions": 1,
                "perceive_s": 0.5,
                "speak_s": 2.0,
                "captured": 0,
                "waiting": 0,
                "dropped_full": 0,
                "dropped_at_stop": 0,
                "captions_skipped": 0,
                "connections": 0,
                "damaged": 0,
                "lag_s": 0.0,
                "caption_lag_s": 0.0,
                "candidates": 0,
                "fewest_candidates": 0,
                "alerts_refused": 0,
                "sound_s": 0.0,
                "sound_skipped_s": 0.0,
                "note_lag_s": 0.0,
            },
        ),
    ],
)
def test_an_event_has_exactly_the_keys_of_the_contract(event, expected):
    assert to_json(event) == expected
    assert list(to_json(event)) == list(expected)
    assert json.loads(to_line(event)) == expected


def test_a_confidence_is_added_where_there_is_one():
    assert to_json(Caption(0, 0.0, 1.0, "a", 0.75))["confidence"] == 0.75
    assert "reason" not in to_json(Caption(0, 0.0, 1.0, "a", 0.75))
    assert to_json(Caption(0, 0.0, 1.0, "", 0.1, "unsure"))["reason"] == "unsure"


def test_json_rounds_times_to_milliseconds_and_numpy_numbers_are_numbers():
    segment = Segment(np.int64(1), np.float64(0.12345), 1 / 3, np.float32(0.5), "max")
    assert json.loads(to_line(segment)) == {
        "type": "segment",
        "id": 1,
        "start": 0.123,
        "end": 0.333,
        "depth": 0.5,
        "reason": "max",
    }


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float32("nan")])
def test_json_never_has_nan(number):
    assert to_json(Segment(0, 0.0, 1.0, number, "cut"))["depth"] is None
    with pytest.raises((ValueError, OverflowError)):
        to_json(Segment(0, 0.0, number, None, "cut"))


@given(NASTY_TEXTS)
def test_jsonl_is_one_line_an_event_and_reads_back(text):
    line = rendered("jsonl", [Caption(0, 0.0, 1.0, text)])
    assert line.splitlines(keepends=True) == [line]
    assert json.loads(line)["text"] == text


def test_json_does_not_escape_utf8():
    assert "Zwiebeln für 3 €" in to_line(Note(0.0, 1.0, "Zwiebeln für 3 €"))


def test_a_note_tells_when_its_words_begin_where_that_is_known():
    timed = Note(1.0, 2.0, "Good morning", (1.0, 1.50049))
    assert json.loads(to_line(timed)) == {
        "type": "note", "start": 1.0, "end": 2.0, "text": "Good morning", "word_starts": [1.0, 1.5],
    }  # fmt: skip
    assert "word_starts" not in json.loads(to_line(Note(1.0, 2.0, "Good morning")))


def test_a_file_name_that_is_not_utf8_survives_in_json():
    line = to_line(Moment("caf\udce9.mp4", 0, 0.0, 1.0, 0.5))
    assert json.loads(line.encode("utf-8"))["source"] == "caf\udce9.mp4"


@pytest.mark.parametrize(("name", "parse"), [("srt", parse_srt), ("vtt", parse_vtt)])
@given(texts=st.lists(NASTY_TEXTS, max_size=4))
def test_cues_read_back_as_they_were_written(name, parse, texts):
    events = [Caption(n, n, n + 1, text) for n, text in enumerate(texts)]
    said = [(event.start, event.end, words(event.text)) for event in events if words(event.text)]
    cues = parse(rendered(name, events))
    read = [(start, end, words(text)) for start, end, text in cues]
    assert [cue for cue in read if cue[2]] == said


@pytest.mark.parametrize(("name", "parse"), [("srt", parse_srt), ("vtt", parse_vtt)])
@given(st.lists(st.floats(min_value=0.002, max_value=500, allow_nan=False), min_size=1, max_size=8))
def test_cues_of_segments_that_tile_do_not_overlap(name, parse, durations):
    ends = np.cumsum(durations)
    starts = [0.0, *ends[:-1]]
    captions = [
        Caption(n, start, end, "x") for n, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    cues = parse(rendered(name, captions))
    for (_, end, _), (start, _, _) in itertools.pairwise(cues):
        assert end == start
    assert all(end > start for start, end, _ in cues)
    # The same rounding in every format.
    lines = [json.loads(line) for line in rendered("jsonl", captions).splitlines()]
    assert [line["start"] for line in lines] == [start for start, _, _ in cues]


@pytest.mark.parametrize(("name", "parse"), [("srt", parse_srt), ("vtt", parse_vtt)])
def test_a_subtitle_file_is_valid_after_every_event(name, parse):
    renderer = FORMATS[name]()
    text = ""
    for event in EVENTS:
        text += renderer.write(event)
        parse(text)
    assert text == text + renderer.close()
    assert [cue[2] for cue in parse(text)] == ["A woman slices onions.", "“Good morning”"]


def test_a_subtitle_file_without_events_is_valid():
    assert parse_srt(rendered("srt", [])) == []
    assert parse_vtt(rendered("vtt", [])) == []


def test_the_stamps_are_those_of_the_formats():
    caption = Caption(0, 3661.5, 360_000.0, "late")
    assert Srt().write(caption) == "1\n01:01:01,500 --> 100:00:00,000\nlate\n\n"
    assert WebVtt().write(caption) == ("WEBVTT\n\n01:01:01.500 --> 100:00:00.000\nlate\n\n")


def test_a_time_before_zero_and_an_empty_span_still_give_a_cue():
    assert parse_srt(rendered("srt", [Note(-0.02, 0.0, "a")])) == [(0.0, 0.001, "“a”")]


def test_srt_breaks_up_what_players_take_for_markup():
    assert Srt().write(Caption(0, 0, 1, "<i>a</i> < b <!-- {\\an8}")).split("\n")[2] == (
        "<\u200bi>a<\u200b/i> < b <\u200b!-- {\u200b\\an8}"
    )


def test_a_score_has_six_decimals():
    assert to_json(replace(EVENTS[3], score=0.123456789))["score"] == 0.123457


def test_a_chapter_carries_its_captions():
    chapter = Chapter("a.mp4", 0.0, 9.0, 2, (EVENTS[1],))
    said = {"segment": 0, "start": 0.0, "end": 4.0, "text": "A woman slices onions."}
    assert to_json(chapter)["captions"] == [said]


def test_a_sources_name_breaks_no_line_of_metrics():
    lines = prometheus({'a"b\\c\nd': Stats(1, 2, 3, 0.5, 0.25)}).splitlines()
    assert r'streammem_segments_total{source="a\"b\\c\nd"} 2' in lines
    assert all(line.startswith(("# TYPE streammem_", "streammem_")) for line in lines)


def test_metrics_of_many_sources_have_each_name_once_and_its_samples_together():
    lines = prometheus(
        {"a": Stats(1, 2, 3, 0.5, 0.25), "b": Stats(7, 2, 3, 0.5, 0.25)}
    ).splitlines()
    at = lines.index("# TYPE streammem_frames_perceived_total counter")
    assert lines[at + 1 : at + 3] == [
        'streammem_frames_perceived_total{source="a"} 1',
        'streammem_frames_perceived_total{source="b"} 7',
    ]
    kinds = [line for line in lines if line.startswith("#")]
    assert len(kinds) == len(set(kinds))


def test_an_answers_remark_is_written_where_there_is_one():
    answer = Answer("What?", "Onions.", True, "computed", remark="Two of them.")
    assert to_json(answer)["remark"] == "Two of them."
    assert "remark" not in to_json(replace(answer, remark=None))


def test_the_time_that_an_answer_looked_at_is_written_where_there_is_one():
    answer = Answer("What?", "once", True, "computed", looked_at="stream 00:05.0 to the end")
    assert to_json(answer)["looked_at"] == answer.looked_at
    assert "(looked at stream 00:05.0 to the end)" in str(answer)
    assert "looked_at" not in to_json(replace(answer, looked_at=None))


def test_evidence_says_which_kind_of_key_it_was_found_by():
    found = replace(EVIDENCE, matched="caption", cosine=0.31)
    assert "score 0.25 by caption a dog" in str(found)
    (item,) = to_json(Answer("What?", "once", True, "computed", (found,)))["evidence"]
    assert (item["matched"], item["cosine"]) == ("caption", 0.31)


def test_text_shows_results_only_one_line_each_and_never_commands_a_terminal():
    for event in EVENTS:
        shown = Text().write(event)
        assert shown == ("" if isinstance(event, Notice | Stats) else f"{event}\n")
    assert (
        Text().write(Note(0.0, 1.0, "a\x1b[2J\r\n\nb\x9b1m")) == "[00:00.0-00:01.0] “a [2J b 1m”\n"
    )


@given(NASTY_TEXTS)
def test_every_piece_is_utf8(text):
    for name in FORMATS:
        rendered(name, [Caption(0, 0.0, 1.0, text + "\udcff")]).encode("utf-8")


@pytest.mark.parametrize("name", ["text", "srt", "vtt"])
def test_no_format_for_people_carries_control_characters(name):
    commands = "a\x1b[2J\x07\x9b1m\tb\r"
    events = [Note(0.0, 1.0, commands), Answer("?", commands, False, "model", (EVIDENCE,))]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", rendered(name, events))


def test_what_was_looked_up_and_who_decided_are_added_where_they_are_known():
    step = Step("look", {"segment": 3, "frames": 2}, "scene 3", (3,), 2)
    answer = Answer("q", "a", True, "model", steps=(step,), decided_by="model")
    keys = ["type", "question", "text", "seen", "method", "evidence", "steps", "decided_by"]
    found = json.loads(to_line(answer))
    assert list(found) == keys
    assert found["steps"] == [
        {
            "call": "look",
            "arguments": {"segment": 3, "frames": 2},
            "text": "scene 3",
            "segments": [3],
            "pictures": 2,
            "failed": False,
        }
    ]
    alert = to_json(Alert("a dog", 1.0, 4.0, 2, confirmed=True))
    assert list(alert)[-1] == "confirmed" and alert["confirmed"] is True
    until = Until("it is so", 2.0004, 1)
    assert to_json(until) == {"type": "until", "condition": "it is so", "time": 2.0, "segment": 1}
    assert "wall_start" in wall_start(until, 0.0)


@pytest.mark.parametrize("name", ["srt", "vtt"])
def test_the_wall_clock_is_put_before_the_words_of_a_cue_where_it_is_known(name):
    at = {"wall_start": "2026-05-03T16:40:00.250+02:00"}
    caption = Caption(0, 0.0, 4.0, "a red room")
    assert stamped(caption, {}) == caption and stamped(Segment(0, 0, 4, None, None), at).id == 0
    cue = FORMATS[name]().write(stamped(caption, at))
    assert "\n2026-05-03 16:40:00+02:00\na red room\n" in cue
