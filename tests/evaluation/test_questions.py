"""Question files: every suite's layout is read, and what is malformed is named by file and row."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from streammem.errors import DatasetError
from streammem.evaluation.questions import SUITES, Videos, read_suite, seconds_of, without_letter
from streammem.evaluation.scoring import LETTERS, Reply, score

DATA = Path(os.environ.get("STREAMMEM_DATA", "nowhere")) / "text" / "benchmarks"
REAL = {"egoplan": (923, 0.25), "egoschema": (500, 0.2), "mvbench": (4000, 0.2829),
        "nextqa": (4996, 0.2)}  # fmt: skip

QUESTION = {
    "video_name": "kitchen", "question_id": "k_1", "question": "What is cut?",
    "option": {"option 0": "an onion", "option 1": "a leek", "option 2": "bread"},
}  # fmt: skip
ANSWER = {"question_id": "k_1", "answer": 2, "type": "TN"}
LETTERED = ["A. red", "B. green", "C. blue"]
OVO = {"id": 7, "task": "HLD", "video": "Ego4D/a.mp4", "realtime": 215, "question": "Where?",
       "options": ["sink", "Unable to answer"], "gt": 1}  # fmt: skip
# A row of each layout, the file that it stands in, and what must come of it.
LAYOUTS = {
    "videomme": ("videomme.jsonl", {
        "videoID": "yt", "question_id": "001-1", "question": "What?", "options": LETTERED,
        "answer": "C", "duration": "short", "domain": "Knowledge", "task_type": "OCR Problems",
    }, {"video": "yt", "answer": (2,), "options": ("red", "green", "blue")}),
    "lvbench": ("video_info.meta.jsonl", {"key": "yt", "type": "live", "qa": [{
        "uid": 3, "question": "What?\n(A) red\n(B) green", "answer": "B",
        "question_type": ["key information retrieval"], "time_reference": "00:15-00:19",
    }]}, {"text": "What?", "answer": (1,), "evidence": ((15.0, 19.0),), "kind": "recall"}),
    "mlvu": ("1_plotQA.json", [{
        "video": "m_1.mp4", "duration": 480, "question": "What?", "candidates": ["red", "green"],
        "answer": "green", "question_type": "plotQA",
    }], {"id": "1_plotQA-1", "answer": (1,), "part": "multiple choice"}),
    "ovo": ("ovo_bench_new.json", [OVO], {
        "time": 215.0, "part": "backward", "kind": "never", "answer": (1,), "cut": "7.mp4",
    }),
    "streamingbench": ("questions_real.json", [{"video_path": "./videos/s.mp4", "questions": [{
        "task_type": "Counting", "question": "How many?", "time_stamp": "00:01:52", "answer": "C",
        "options": LETTERED, "time": "[0:01:00 - 0:02:00]",
    }]}], {"video": "s.mp4", "time": 112.0, "part": "real", "evidence": ((60.0, 120.0),)}),
    "vsi-super": ("recall.jsonl", {
        "video_path": "10mins/a.mp4", "question": "Order?", "options": LETTERED, "answer": "A",
        "type": "10mins",
    }, {"id": "recall-1", "part": "recall", "answer": (0,)}),
    "egolife": ("EgoLifeQA_A1_JAKE.json", [{
        "ID": "1", "query_time": {"date": "DAY2", "time": "11210250"}, "type": "EntityLog",
        "question": "Who?", "choice_a": "Tasha", "choice_b": "Alice", "choice_c": "Shure",
        "choice_d": "Lucia", "answer": "B", "target_time": {"date": "DAY1", "time": "11152408"},
    }], {"video": "A1_JAKE", "time": 127_262 + 2.5, "answer": (1,),
         "evidence": ((40_524.4, 40_554.4),)}),
    "teleego": ("merged_P1_A.json", [{
        "index": 4, "category": "Memory", "subcategory": "Entity Tracking", "QA_type": "mc_multi",
        "question": "Which?", "options": LETTERED, "answer": {"value": ["A", "C"]},
        "evidence": {"timestep": {"start": "D1-09:00:10", "end": "D1-09:01:00"}},
    }], {"video": "merged_P1", "time": 160.0, "answer": (0, 2), "part": "mc_multi"}),
    "needle": ("needle.json", {
        "retrieval_question": "What does he do?", "needle_desc": "He reads a book.",
    }, {"video": "sky_video_300_40.mp4", "references": ("He reads a book.",),
        "evidence": ((40.0, 41.0),)}),
}  # fmt: skip


def write(folder, name, content):
    text = json.dumps(content)
    (folder / name).write_text(text + "\n", encoding="utf-8")


def write_beside(folder, question=QUESTION, answer=ANSWER, more=()):
    write(folder, "test_q.json", [question, *(q for q, _ in more)])
    write(folder, "test_a.json", [answer, *(a for _, a in more)])


def write_layout(folder, suite):
    name, content, wanted = LAYOUTS[suite]
    write(folder, name, content)
    if suite == "teleego":
        label = {"start_label": "D1-09:00:00", "end_label": "D1-10:00:00"}
        mapping = {"a.mp4": {**label, "merged_offset_start_seconds": 100}}
        write(folder, "timeline_P1.json", {"mapping_by_input_label": mapping})
    if suite == "needle":
        (folder / "sky_video_300_40.mp4").touch()
        (folder / "sky.mp4").touch()
    return wanted


@pytest.mark.parametrize("suite", LAYOUTS)
def test_a_row_of_every_published_layout_is_read(suite, tmp_path):
    wanted = write_layout(tmp_path, suite)
    found = read_suite(suite, tmp_path)
    (question,) = found.questions
    assert {name: getattr(question, name) for name in wanted} == wanted
    assert not found.notices and len(found.digest) == 12


def test_every_suite_has_a_layout_that_is_tested_or_is_ours():
    beside = {name for name, suite in SUITES.items() if suite.answers}
    assert {*LAYOUTS, *beside, "films"} == set(SUITES)
    assert all(suite.layout and suite.about for suite in SUITES.values())


@pytest.mark.skipif(not DATA.is_dir(), reason="STREAMMEM_DATA has no text/benchmarks")
def test_all_10419_questions_of_the_real_files_are_read():
    total = 0
    for name, (count, chance) in REAL.items():
        found = read_suite(name, DATA / name)
        total += len(found.questions)
        assert len(found.questions) == count
        guess = np.mean([question.chance for question in found.questions])
        assert guess == pytest.approx(chance, abs=1e-4)
        options = [q.options[q.answer[0]] for q in found.questions]
        assert all(options) and len({q.id for q in found.questions}) == count
    assert total == 10_419


@pytest.mark.skipif(not DATA.is_dir(), reason="STREAMMEM_DATA has no text/benchmarks")
@pytest.mark.parametrize("suite", REAL)
def test_an_oracle_has_every_real_question_right_and_a_guess_one_over_its_options(suite):
    found, rng = read_suite(suite, DATA / suite), np.random.default_rng(1)
    official = SUITES[suite].official
    right = {by: list[float]() for by in ("letter", "choice")}
    for question in found.questions:
        guess = int(rng.integers(len(question.options)))
        for place in (question.answer[0], guess):
            for by, reply in (("letter", Reply(LETTERS[place])), ("choice", Reply("x", place))):
                scored = score(question, reply, official)
                if place == question.answer[0]:
                    assert scored[:2] == (1.0, 1.0), question.id
                right[by].append(scored.strict)
    chances = np.array([question.chance for question in found.questions])
    error = np.sqrt((chances * (1 - chances)).sum()) / len(chances)  # of the guesses' mean
    for by, scores in right.items():
        assert abs(np.mean(scores[1::2]) - chances.mean()) < 3 * error, by


def test_a_forward_row_of_ovo_asks_at_each_of_its_times(tmp_path):
    rows = [
        {"id": 1, "task": "REC", "video": "v.mp4", "activity": "jump",
         "test_info": [{"realtime": 5, "count": 1}, {"realtime": 9, "count": 3}]},
        {"id": 2, "task": "CRR", "video": "v.mp4", "question": "Why?",
         "test_info": [{"realtime": 5, "type": 0}]},
        {"id": 3, "task": "SSR", "video": "v.mp4", "test_info": [
            {"realtime": 4, "type": 1, "step": "stir"}]},
    ]  # fmt: skip
    write(tmp_path, "ovo_bench_new.json", rows)
    found = read_suite("ovo", tmp_path).questions
    assert [(q.id, q.time, q.check) for q in found] == [
        ("1_0", 5, "number"), ("1_1", 9, "number"), ("2_0", 5, "said"), ("3_0", 4, "said"),
    ]  # fmt: skip
    assert found[1].references == ("3",) and found[3].answer == (1,)
    assert {q.part for q in found} == {"forward"}


def test_streamed_counts_are_asked_at_each_of_their_times(tmp_path):
    row = {"video_path": "a.mp4", "question": "How many chairs?", "split": "10mins_streaming",
           "query_times": [60, 120], "answers": [2, 5]}  # fmt: skip
    write(tmp_path, "count.jsonl", row)
    found = read_suite("vsi-super", tmp_path).questions
    assert [(q.time, q.references) for q in found] == [(60, ("2",)), (120, ("5",))]
    write(tmp_path, "count.jsonl", {**row, "answers": [2]})
    with pytest.raises(DatasetError, match=r"count\.jsonl: row 1: answers: needs as many"):
        read_suite("vsi-super", tmp_path)


def without(name):
    return {key: value for key, value in QUESTION.items() if key != name}


FAULTS = {
    "no question": (without("question"), ANSWER, "row 1: question: missing or empty"),
    "no video": (without("video_name"), ANSWER, "row 1: video_name: missing or empty"),
    "no id": (without("question_id"), ANSWER, "row 1: question_id"),
    "no options": (without("option"), ANSWER, "row 1: options: missing or empty"),
    "an empty option": (
        {**QUESTION, "option": {"option 0": "a", "option 1": " "}}, {**ANSWER, "answer": 0},
        "row 1: options: number 1 is empty",
    ),
    "a gap": (
        {**QUESTION, "option": {"option 0": "a", "option 2": "b"}}, ANSWER, "without a gap",
    ),
    "out of range": (QUESTION, {**ANSWER, "answer": 3}, "answer 3 is out of range: 3 options"),
    "below range": (QUESTION, {**ANSWER, "answer": -1}, "answer -1 is out of range"),
    "no option": (QUESTION, {**ANSWER, "answer": "a cake"}, "'a cake' is none of the options"),
    "half": (QUESTION, {**ANSWER, "answer": 0.5}, "answer: missing, or neither"),
    "true": (QUESTION, {**ANSWER, "answer": True}, "answer: missing, or neither"),
    "another's answer": (QUESTION, {**ANSWER, "question_id": "x"}, "'x' is asked nowhere"),
    "lost letters": ({**QUESTION, "question": "What\ufffd?"}, ANSWER, "lost in conversion"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_malformed_is_named_by_file_and_row(fault, tmp_path):
    question, answer, told = FAULTS[fault]
    write_beside(tmp_path, question, answer)
    with pytest.raises(DatasetError) as error:
        read_suite("nextqa", tmp_path)
    assert told in str(error.value) and "test_" in str(error.value)


ODD_FIELDS = {
    "lvbench": {"question_type": 3},
    "ovo": {"gt": float("inf")},
    "teleego": {"evidence": [1]},
    "vsi-super": {"answer": float("nan")},
    "mlvu": {"candidates": {"a": [1]}},
}


@pytest.mark.parametrize("suite", ODD_FIELDS)
def test_a_field_of_a_kind_that_no_row_has_is_named_by_file_and_row(suite, tmp_path):
    write_layout(tmp_path, suite)
    name, content, _ = LAYOUTS[suite]
    rows = content if isinstance(content, list) else [content]
    inner = rows[0]["qa"][0] if suite == "lvbench" else rows[0]
    changed = {**inner, **ODD_FIELDS[suite]}
    changed = {**rows[0], "qa": [changed]} if suite == "lvbench" else changed
    write(tmp_path, name, [changed] if isinstance(content, list) else changed)
    with pytest.raises(DatasetError, match=r"row 1(\.1)?: "):
        read_suite(suite, tmp_path)


@pytest.mark.parametrize("count", ["three", None, float("nan")])
def test_a_count_that_is_no_number_is_named(count, tmp_path):
    row = {"video_path": "a.mp4", "question": "How many?", "query_times": [60], "answers": [count]}
    write(tmp_path, "count.jsonl", row)
    with pytest.raises(DatasetError, match=r"count\.jsonl: row 1: no count"):
        read_suite("vsi-super", tmp_path)


def test_ends_of_lines_within_a_text_do_not_tear_its_row(tmp_path):
    row = {"video_path": "a.mp4", "question": "How\u2028many\x85?", "answer": 2}
    (tmp_path / "count.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    (question,) = read_suite("vsi-super", tmp_path).questions
    assert question.text == "How\u2028many\x85?"


def test_a_name_that_no_file_can_have_is_a_missing_video(tmp_path):
    (tmp_path / "videos").mkdir()
    assert Videos(SUITES["nextqa"], tmp_path).find("v" * 400) == ()


def test_ids_that_occur_twice_name_both_rows(tmp_path):
    write_beside(tmp_path, more=[(QUESTION, {**ANSWER, "question_id": "k_2"})])
    with pytest.raises(DatasetError, match=r"row 2: id 'k_1' stands in test_q\.json: row 1"):
        read_suite("nextqa", tmp_path)
    write_beside(tmp_path, more=[({**QUESTION, "question_id": "k_2"}, ANSWER)])
    with pytest.raises(DatasetError, match=r"test_a.json: row 2: question_id 'k_1' is there twice"):
        read_suite("nextqa", tmp_path)


def test_bad_rows_are_left_out_only_where_asked_and_then_counted(tmp_path):
    bad = {**without("question"), "question_id": "k_2"}
    write_beside(tmp_path, more=[(bad, {**ANSWER, "question_id": "k_2"})])
    with pytest.raises(DatasetError, match="skip-bad-rows"):
        read_suite("nextqa", tmp_path)
    found = read_suite("nextqa", tmp_path, skip=True)
    assert len(found.questions) == 1
    assert found.notices == ("left out: test_q.json: row 2: question: missing or empty",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'[{"question": "caf\xe9"}]', "line 1: not UTF-8 (byte 0xe9)"),
        (b"[{", "not JSON"),
        (b'["a"]', "row 1: no object"),
        (b"[]", "no question"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(content, told, tmp_path):
    (tmp_path / "test_q.json").write_bytes(content)
    write(tmp_path, "test_a.json", [])
    with pytest.raises(DatasetError) as error:
        read_suite("nextqa", tmp_path)
    assert told in str(error.value)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    write_beside(tmp_path)
    text = (tmp_path / "test_q.json").read_text()
    (tmp_path / "test_q.json").write_text(text, encoding="utf-8-sig")
    assert len(read_suite("nextqa", tmp_path).questions) == 1


def test_a_folder_without_the_suite_and_one_without_answers_say_so(tmp_path):
    with pytest.raises(
        DatasetError, match=r"holds no question file of nextqa; looked for test_q\.json"
    ):
        read_suite("nextqa", tmp_path)
    write(tmp_path, "test_q.json", [QUESTION])
    with pytest.raises(DatasetError, match="the file of answers is missing"):
        read_suite("nextqa", tmp_path)


def test_odd_rows_are_scored_and_told_of(tmp_path):
    one = {**QUESTION, "option": {"option 0": "yes"}}
    twins = {**QUESTION, "question_id": "k_2",
             "option": {"option 0": "a", "option 1": "b", "option 2": "A"}}  # fmt: skip
    write_beside(tmp_path, one, {**ANSWER, "answer": 0},
                 more=[(twins, {**ANSWER, "question_id": "k_2"})])  # fmt: skip
    assert read_suite("nextqa", tmp_path).notices == (
        "test_q.json: row 1: one option only: any reply is right",
        "test_q.json: row 2: options 0 and 2 are equal, one of them right",
    )


def test_stamps_that_cannot_be_meant_are_told_of(tmp_path):
    name, content, _ = LAYOUTS["streamingbench"]
    content[0]["questions"][0] |= {"time_stamp": "05:11:00"}
    write(tmp_path, name, content)
    (notice,) = read_suite("streamingbench", tmp_path).notices
    assert "time_stamp 05:11:00 is 18660 s, though its clip ends at 120 s" in notice


def test_what_is_not_scored_is_counted(tmp_path):
    rows = [
        {"video_path": "a.mp4", "questions": [{"question": "When?", "ground_truth_output": "x"}]},
        {"video_path": "a.mp4", "questions": [{
            "question": "What?", "options": LETTERED, "answer": "A", "time_stamp": "00:01",
            "task_type": "Counting",
        }]},
    ]  # fmt: skip
    write(tmp_path, "questions_omni.json", rows)
    found = read_suite("streamingbench", tmp_path)
    assert len(found.questions) == 1
    assert found.notices[0].startswith("1 rows left out: proactive output")


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:01:52", 112), ("1:52", 112), (7, 7), ("2.5", 2.5), ("1:00:00", 3600)]
)
def test_times_are_read_as_they_are_written(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3", "1:2:3:4", None, True, float("nan")])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match=r"time|float|NaN"):
        seconds_of(text)


def test_only_an_options_own_letter_is_taken_off():
    assert [without_letter(text, 1) for text in ("B. cat", "(B) cat", "B: cat", "A. cat", "B")] == [
        "cat", "cat", "cat", "A. cat", "B",
    ]  # fmt: skip


def test_videos_are_found_by_path_by_name_and_by_the_clips_of_a_participant(tmp_path):
    for name in ("videos/a/one.mp4", "videos/0001/77.mkv", "DAY2_A1_JAKE_11000000.mp4",
                 "DAY1_A1_JAKE_10000010.mp4", "DAY1_A2_ALICE_10000000.mp4"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    videos = Videos(SUITES["nextqa"], tmp_path)
    assert videos.find("a/one.mp4") == videos.find("a/one") == videos.find("elsewhere/one.mp4")
    assert videos.find("77")[0].path.name == "77.mkv"
    assert videos.find("78") == () and videos.find("../tmp/one.avi") == videos.find("one")
    parts = Videos(SUITES["egolife"], tmp_path).find("A1_JAKE")
    assert [part.offset for part in parts] == [36_000.5, 86_400 + 39_600]


def test_categories_of_the_real_suites_are_kept():
    if not DATA.is_dir():
        pytest.skip("STREAMMEM_DATA has no text/benchmarks")
    found = Counter(q.categories for q in read_suite("mvbench", DATA / "mvbench").questions)
    assert len(found) == 20 and set(found.values()) == {200}


def test_a_wrong_folder_is_an_error_that_names_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        DatasetError, match=r"holds no question file of nextqa; looked for test_q"
    ) as e:
        read_suite("nextqa", tmp_path)
    assert "with test_a.json beside it" in str(e.value)
    with pytest.raises(DatasetError, match=r"no such folder, so no question file of mlvu; .*json/"):
        read_suite("mlvu", tmp_path / "nowhere")
