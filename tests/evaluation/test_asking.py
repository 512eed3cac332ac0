"""The streaming protocol, its controls, and what the harness itself objects to."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from streammem.cli import main
from streammem.engine.session_config import defaults_of
from streammem.errors import ConfigError, DatasetError
from streammem.evaluation import asking
from streammem.evaluation.asking import (
    CONTEXTS,
    Asked,
    RunConfig,
    SessionWatcher,
    ask_suite,
)
from streammem.evaluation.film_files import write as write_video
from streammem.evaluation.questions import SUITES, QuestionSet, SuiteQuestion, Videos
from streammem.evaluation.report import diff_markdown, difference, draw, markdown, summarise
from streammem.evaluation.scoring import LETTERS, Reply
from streammem.evaluation.timelines import TimedQuestion
from streammem.types import Answer, Frame, Note, TimeSpan
from tests.tiny import tiny_model

DECODED = asking._frames
END_S = 20  # of every video, a frame a second
OPTIONS = ("red", "green", "blue", "white")


class Video:
    """Frames of one colour each second: what is on screen at second t is option t % 4."""

    def find(self, name):
        return () if name.startswith("gone") else ("there",)

    roots = ()


def frames_of(videos, name, fps):
    for second in range(END_S):
        pixels = np.full((4, 4, 3), second % 4, np.uint8)
        yield Frame(pixels, float(second), 1.0, second), ()


@pytest.fixture(autouse=True)
def no_decoding(monkeypatch):
    monkeypatch.setattr(asking, "_frames", frames_of)


def questions(count=40, videos=4):
    """What was on screen last, at a time of its own; the answer is in the past alone."""
    made = []
    for number in range(count):
        second = (number * 7) % END_S
        made.append(SuiteQuestion(
            id=str(number), video=f"v{number % videos}", text=f"What is on screen? ({number})",
            options=OPTIONS, answer=(second % 4,), time=second + 0.5, categories=("screen",),
            evidence=(TimeSpan(second, second + 1.0),),
        ))  # fmt: skip
    return QuestionSet("videomme", tuple(made), (), "0" * 12)


class Honest:
    """Answers from the last frame that it was shown."""

    def __init__(self):
        self.seen, self.ended = [], False

    num_bytes, fingerprint = 5, "weights"

    def push(self, frame, notes):
        assert not self.ended
        self.seen.append(frame)

    def end(self):
        self.ended = True

    def ask(self, asked, context):
        if context == "blind":
            return Reply("A")
        right = asked.options.index(OPTIONS[self.seen[-1].pixels.max() % 4])
        last = self.seen[-1]
        return Reply(LETTERS[right], cited=(TimeSpan(last.time, last.time + 1.0),), seen=True)


def run(found, factory, contexts=("memory",), **more):
    config = RunConfig(contexts, "letter", **more)
    return ask_suite(found, Video(), factory, config, model="fake", progress=False)


def report_of(found, factory, contexts=("memory",), **more):
    return summarise(found, run(found, factory, contexts, **more))


def holds(report):
    return {check["name"]: check["holds"] for check in report["checks"]}


# -- the protocol --


def test_a_question_is_asked_at_its_time_and_the_past_alone_is_shown():
    shown = {}

    class Spy(Honest):
        def ask(self, asked, context):
            shown[asked.text] = [frame.time for frame in self.seen]
            return super().ask(asked, context)

    found = questions()
    ended = replace(found.questions[0], id="end", text="At the end?", time=None)
    sharp = replace(found.questions[0], id="sharp", text="With a frame?", time=7.0)
    found = found._replace(questions=(*found.questions, sharp, ended))
    report = report_of(found, Spy)
    for question in found.questions[:-1]:
        assert shown[question.text] == [t for t in range(END_S) if t <= question.time]
    assert shown["At the end?"] == list(range(END_S))
    assert report["parts"]["all"]["contexts"]["memory"]["strict"][0] > 0.95


def test_a_video_is_watched_once_for_all_its_questions():
    made = []
    run(questions(), lambda: made.append(Honest()) or made[-1], ("memory", "now", "captions"))
    assert len(made) == 4 and all(len(watcher.seen) == END_S for watcher in made)


def test_a_watcher_is_told_text_and_options_and_nothing_else():
    assert Asked._fields == ("text", "options")
    assert set(asking.Watcher.__dict__) >= {"push", "end", "ask"}
    told = []

    class Spy(Honest):
        def ask(self, asked, context):
            told.append(asked)
            return super().ask(asked, context)

    run(questions(4), Spy)
    assert all(isinstance(asked, Asked) and len(asked) == 2 for asked in told)


def test_missing_videos_are_counted_and_a_suite_without_any_is_refused():
    found = questions()
    some = [replace(q, video=f"gone{q.video}") if q.video == "v0" else q for q in found.questions]
    report = report_of(found._replace(questions=tuple(some)), Honest)
    assert report["missing"] == {"videos": 1, "questions": 10}
    assert "10 questions about 1 videos that are not here" in markdown(report)
    assert report["parts"]["all"]["contexts"]["memory"]["strict"][3] == 30
    every = tuple(replace(q, video=f"gone{q.video}") for q in found.questions)
    with pytest.raises(DatasetError, match="none of its 4 videos is there"):
        report_of(found._replace(questions=every), Honest)


def test_a_sample_is_drawn_by_its_seed_from_all_questions():
    def asked(**more):
        return [row["id"] for row in run(questions(200), Honest, **more).rows]

    drawn = asked(limit=20, seed=1)
    assert len(set(drawn)) == 20 and sorted(drawn) == sorted(asked(limit=20, seed=1))
    assert set(drawn) != set(asked(limit=20, seed=2)) and max(map(int, drawn)) > 100


def test_a_clip_that_is_cut_at_its_question_stands_in_for_a_missing_video():
    found = questions(1)
    (question,) = found.questions
    cut = replace(question, video="gone", cut="c.mp4")
    result = run(found._replace(questions=(cut,)), Honest)
    assert result.rows[0]["video"] == "c.mp4" and result.missing == (0, 0)


# -- oracle and chance --


def test_an_oracle_is_always_right_and_a_guess_is_at_the_mean_of_one_over_options():
    found = questions(400, videos=20)
    two = [replace(q, options=OPTIONS[:2], answer=(q.answer[0] % 2,)) if i % 2 else q
           for i, q in enumerate(found.questions)]  # fmt: skip
    found = found._replace(questions=tuple(two))
    key = {(q.text, q.options): q.answer[0] for q in found.questions}
    rng = np.random.default_rng(0)

    class Oracle(Honest):
        def ask(self, asked, context):
            return Reply(LETTERS[key[asked]])

    class Guess(Honest):
        def ask(self, asked, context):
            return Reply(LETTERS[int(rng.integers(len(asked.options)))])

    oracle, guess = (
        report_of(found, Oracle)["parts"]["all"],
        report_of(found, Guess)["parts"]["all"],
    )
    assert oracle["contexts"]["memory"]["strict"][0] == 1.0
    assert oracle["contexts"]["memory"]["official"][0] == 1.0
    value, low, high, _ = guess["contexts"]["memory"]["strict"]
    assert guess["chance"] == 0.375 and low <= 0.375 <= high and value < 0.5


def test_the_best_of_one_letter_alone_stands_beside_a_guess():
    found = questions(40)
    often = [replace(q, answer=(2,)) if i < 30 else q for i, q in enumerate(found.questions)]
    places = [q.answer[0] for q in often]

    class OneLetter(Honest):
        def ask(self, asked, context):
            return Reply("C")

    report = report_of(found._replace(questions=tuple(often)), OneLetter)
    part = report["parts"]["all"]
    assert part["one letter"] == part["contexts"]["memory"]["strict"][0] == places.count(2) / 40
    assert f"always the same letter: {part['one letter']:.3f} at most" in markdown(report)


# -- controls --


def test_controls_stand_beside_and_shuffled_options_are_scored_by_their_text():
    contexts = tuple(CONTEXTS)
    report = report_of(questions(), Honest, contexts)
    scores = report["parts"]["all"]["contexts"]
    assert list(scores) == list(contexts)
    assert scores["shuffled"]["strict"][0] == scores["memory"]["strict"][0] == 1.0
    assert scores["blind"]["strict"][0] < 0.5 and scores["other"]["strict"][0] < 0.5
    assert all(holds(report).values()), report["checks"]


def test_another_videos_memory_has_seen_another_video_to_its_end():
    names = []

    class Named(Honest):
        def ask(self, asked, context):
            if context == "other":
                names.append((asked.text, len(self.seen), self.ended))
            return super().ask(asked, context)

    run(questions(8), Named, ("memory", "other"))
    assert len(names) == 8 and all(seen == END_S and ended for _, seen, ended in names)


def test_another_videos_memory_is_of_another_video(monkeypatch):
    def of_one(videos, name, fps):
        pixels = np.full((4, 4, 3), int(name[1:]), np.uint8)
        yield Frame(pixels, 0.0, 1.0, 0), ()

    monkeypatch.setattr(asking, "_frames", of_one)
    asked_of = {question.text: question.video for question in questions(8).questions}
    pairs = []

    class Spy(Honest):
        def ask(self, asked, context):
            own = f"v{self.seen[-1].pixels.max()}" == asked_of[asked.text]
            pairs.append((context, own))
            return super().ask(asked, context)

    ended = [replace(question, time=None) for question in questions(8).questions]
    run(questions(8)._replace(questions=tuple(ended)), Spy, ("memory", "other"))
    assert set(pairs) == {("memory", True), ("other", False)} and len(pairs) == 16


# -- cheating models --


def test_a_model_that_copies_the_reference_is_caught_by_its_controls():
    found = questions()
    key = {q.text: OPTIONS[q.answer[0]] for q in found.questions}
    places = {q.text: q.answer[0] for q in found.questions}

    class ByText(Honest):
        def ask(self, asked, context):
            return Reply(LETTERS[asked.options.index(key[asked.text])])

    class ByLetter(Honest):
        def ask(self, asked, context):
            return Reply(LETTERS[places[asked.text]])

    copied = report_of(found, ByText, tuple(CONTEXTS))
    assert not holds(copied)["beats blind"] and not holds(copied)["beats other"]
    lettered = report_of(found, ByLetter, tuple(CONTEXTS))
    assert not holds(lettered)["order of options"] and not holds(lettered)["beats blind"]
    assert "Checks that do not hold: beats blind, beats other" in markdown(copied)


def test_a_model_that_cites_the_future_is_caught():
    class Seer(Honest):
        def ask(self, asked, context):
            return super().ask(asked, context)._replace(cited=(TimeSpan(18.0, 19.0),))

    report = report_of(questions(), Seer)
    assert holds(report)["past only"] is False
    assert holds(report_of(questions(), Honest))["past only"] is True


EDGES = np.arange(0.0, END_S + 1)


def film_questions(count=240):
    """Was it there? A half was; of the rest one half comes later, one never."""
    made = []
    for number in range(count):
        there, later = number % 2 == 0, number % 4 == 1
        gold = (1,) if there else ()
        asked = TimedQuestion("?", "exists", gold, time=9.5, later=later)
        word = "was" if there else "later" if later else "never"
        made.append(SuiteQuestion(
            id=str(number), video=f"v{number % 6}", text=f"Was {word} {number} there?", time=9.5,
            kind="recall" if there else "never", check="timeline", later=later,
            truth=(asked, EDGES), evidence=(TimeSpan(1, 2),) if there else (),
        ))  # fmt: skip
    return QuestionSet("films", tuple(made), (), "0" * 12)


class Claims(Honest):
    """Says that everything was there that ``words`` names."""

    words = ("was",)

    def ask(self, asked, context):
        seen = any(f" {word} " in f" {asked.text} " for word in self.words)
        answer = Answer(asked.text, "yes" if seen else "no", seen, "computed")
        return Reply(answer.text, None, seen, (TimeSpan(1, 2),), score=0.9 if seen else 0.1,
                     answer=answer)  # fmt: skip


class Seer(Claims):
    words = ("was", "later")


class SaysYes(Claims):
    words = ("Was",)


def test_a_model_that_knows_the_future_is_caught_by_what_comes_only_later():
    report = report_of(film_questions(), Seer)
    assert holds(report)["knows no future"] is False
    assert holds(report_of(film_questions(), Claims))["knows no future"] is True


def test_a_model_that_always_says_yes_is_caught_and_never_happened_shows_it():
    report = report_of(film_questions(), SaysYes)
    checks = holds(report)
    assert checks["not one reply"] is False and checks["tells there from not there"] is False
    assert report["pair"]["memory"]["recall"][0] == 1.0
    assert report["pair"]["memory"]["never"][0] == 0.0
    honest = holds(report_of(film_questions(), Claims))
    assert honest["not one reply"] and honest["tells there from not there"]


def test_recall_that_is_paid_with_sightings_is_shown_as_such():
    class Trade(Claims):
        def ask(self, asked, context):
            self.words = ("Was",) if context == "memory" else ("zebra",)
            return super().ask(asked, context)

    text = markdown(report_of(film_questions(), Trade, ("memory", "now")))
    assert "+1.000 of what happened and -1.000 of what never happened" in text
    assert "**a gain on one is paid with the other**" in text
    fair = markdown(report_of(film_questions(), Claims, ("memory", "now")))
    assert "is paid with" not in fair


# -- reports --


def test_parts_of_unlike_questions_are_never_added_up():
    found = questions()
    parts = ("real-time", "backward", "forward")
    mixed = tuple(replace(q, part=parts[i % 3]) for i, q in enumerate(found.questions))
    report = report_of(found._replace(questions=mixed), Honest)
    assert set(report["parts"]) == set(parts)
    text = markdown(report)
    assert "there is no total" in text and "## Accuracy, backward" in text
    assert "## Accuracy (" not in text


def test_a_report_states_what_it_was_made_with_and_can_be_drawn(tmp_path):
    report = report_of(questions(), Honest, ("memory", "now"), limit=30, seed=3)
    json.dumps(report, allow_nan=False)
    text = markdown(report)
    made = ("30 of 40 questions, drawn with seed 3", "commit", "torch", "000000000000")
    for wanted in (*made, "below 10 s", "seconds a question", "tokens a question", "bytes kept"):
        assert wanted in text
    draw(report, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert report["ages"]["memory"]["below 10 s"][3] == 30


def test_figures_of_films_say_what_is_refused_and_how_sure_answers_are():
    report = report_of(film_questions(), Claims)
    assert report["risk"][-1] == [1.0, 0.0]
    assert "Wrong, of the surest tenth" in markdown(report)

    class Doubts(Claims):
        """Sure of what was not there; half of what was, it denies and is the least sure of."""

        def ask(self, asked, context):
            reply = super().ask(asked, context)
            if reply.seen and int(asked.text.split()[2]) % 4 == 0:
                answer = replace(reply.answer, text="no", seen=False)
                return reply._replace(seen=False, score=0.45, answer=answer)
            return reply._replace(score=0.7 if reply.seen else 0.2)

    risks = [risk for _, risk in report_of(film_questions(), Doubts)["risk"]]
    assert risks[:7] == [0.0] * 7 and risks[-1] == 0.25


def test_evidence_is_as_old_as_its_last_piece_and_controls_stand_beside():
    found = questions(40)
    pieces = (TimeSpan(0.0, 1.0), TimeSpan(4.0, 5.0))
    asked = [replace(q, time=12.0 if i < 10 else 15.5, evidence=pieces)
             for i, q in enumerate(found.questions)]  # fmt: skip
    report = report_of(found._replace(questions=tuple(asked)), Honest, ("memory", "now"))
    counts = {c: {age: found[3] for age, found in own.items()}
              for c, own in report["ages"].items()}  # fmt: skip
    wanted = {"below 10 s": 10, "below 1 min": 30}
    assert counts == {"memory": wanted, "now": wanted}
    assert "| strict | the stream's memory | the last 4 frames |" in markdown(report)


def test_intervals_are_as_wide_as_if_questions_that_go_together_were_one():
    """Ten questions about each of four things, each right or wrong as a whole."""
    found = questions(40, videos=1)
    things = [replace(q, cluster=f"thing {i // 10}", answer=(0,), options=OPTIONS)
              for i, q in enumerate(found.questions)]  # fmt: skip
    right = {q.text for q in things if q.cluster in ("thing 0", "thing 1")}

    class Knows(Honest):
        def ask(self, asked, context):
            return Reply("A" if asked.text in right else "B")

    report = report_of(found._replace(questions=tuple(things)), Knows)
    value, low, high, count = report["parts"]["all"]["contexts"]["memory"]["strict"]
    assert (value, count) == (0.5, 40) and low < 0.2 and high > 0.8


def test_answers_over_a_timeline_are_summed_up_by_how_they_are_wrong():
    """Of four that were there: right, wrong with evidence, wrong without, refused; one claimed."""
    edges = np.arange(0.0, END_S + 1)
    asked = TimedQuestion("?", "when", (1,), common=True, thing="a dog")
    absent = TimedQuestion("?", "exists", (), thing="a cat")
    replies, made = {}, []
    cases = [  # truth, said to be there, scenes that are cited
        (asked, True, [1]), (asked, True, [1, 2]), (asked, True, [2]), (asked, False, [3]),
        (absent, True, [3]), (absent, False, []),
    ]  # fmt: skip
    for number, (truth, seen, scenes) in enumerate(cases):
        text = f"Question {number}?"
        cited = tuple(TimeSpan(scene - 0.1, scene + 0.9) for scene in scenes)  # beside the edges
        replies[text] = Reply("", None, seen, cited, score=0.5,
                              answer=Answer(text, "", seen, "computed"))  # fmt: skip
        made.append(SuiteQuestion(
            id=str(number), video="v0", text=text, time=9.5, check="timeline", cluster=text,
            kind="recall" if truth.gold else "never", truth=(truth, edges),
            evidence=tuple(TimeSpan(scene, scene + 1) for scene in truth.gold),
        ))  # fmt: skip

    class Fixed(Honest):
        def ask(self, asked, context):
            return replies[asked.text]

    report = report_of(QuestionSet("films", tuple(made), (), "0" * 12), Fixed)
    found = report["timelines"]["contexts"]["memory"]
    values = {name: each[0] for name, each in found.items() if name != "questions"}
    assert values == {
        "right": pytest.approx(1 / 3, abs=1e-4), "right, there": 0.25, "refused": 0.25,
        "claimed": 0.5, "evidence": 0.5, "evidence, wrong": pytest.approx(1 / 3, abs=1e-4),
    }  # fmt: skip
    assert list(report["timelines"]["operators"]) == ["exists", "when", "everyday things",
                                                      "descriptions"]  # fmt: skip
    when = report["timelines"]["operators"]["when"]
    assert when["questions"] == 4 and when["claimed"] is None and when["refused"][3] == 4
    text = markdown(report)
    assert "## By operator" in text and "| when | 4 | 0.250 [" in text and "refused though" in text
    assert report_of(questions(), Honest)["timelines"] == {"operators": {}, "contexts": {}}


# -- going on --


def test_an_interrupted_run_goes_on_and_gives_the_same(tmp_path):
    found = questions()
    whole = run(found, Honest, ("memory", "other"))
    made = []

    class Stops(Honest):
        def __init__(self):
            super().__init__()
            made.append(self)

        def ask(self, asked, context):
            if len(made) == 3:
                raise KeyboardInterrupt
            return super().ask(asked, context)

    config = RunConfig(("memory", "other"), "letter")
    ask = partial(ask_suite, found, Video(), config=config, model="fake", progress=False)
    with pytest.raises(KeyboardInterrupt):
        ask(factory=Stops, out=tmp_path)
    with (tmp_path / "predictions.jsonl").open("a") as file:
        file.write('{"id": "0", "vid')  # as a torn line
    again = []
    result = ask(factory=lambda: again.append(Honest()) or again[-1], out=tmp_path)
    assert len(again) == 2, "two of the four videos were done"

    def plain(rows):
        keep = ("id", "context", "strict", "text", "video")
        return sorted(tuple(str(row[name]) for name in keep) for row in rows)

    assert plain(result.rows) == plain(whole.rows)
    with pytest.raises(ConfigError, match="another scorer; give a new folder"):
        other = RunConfig(("memory", "other"), "likelihood")
        ask_suite(found, Video(), Honest, other, model="fake", out=tmp_path, progress=False)


def test_a_run_goes_on_only_with_the_same_model_and_the_same_settings(tmp_path):
    found = questions()
    config = RunConfig(("memory",), "letter")
    ask = partial(ask_suite, found, Video(), config=config, out=tmp_path, progress=False)
    ask(factory=Honest, model="fake")
    log = tmp_path / "predictions.jsonl"
    lines = log.read_text().splitlines()
    kept = [json.loads(line) for line in lines if '"done"' in line]
    assert {line["fingerprint"] for line in kept} == {"weights"}
    ends = [i for i, line in enumerate(lines) if '"done"' in line]
    log.write_text("\n".join(lines[: ends[1] + 1]) + "\n")  # two of four videos

    class Trained(Honest):
        fingerprint = "other weights"

    with pytest.raises(ConfigError, match=r"other weights \(fingerprint weights, now other weigh"):
        ask(factory=Trained, model="fake")
    with pytest.raises(ConfigError, match="another model; give a new folder"):
        ask(factory=Honest, model="another")
    assert ask(factory=Honest, model="fake").fingerprint == "weights"
    assert ask(factory=Trained, model="fake").fingerprint == "weights", "nothing is asked any more"


def test_by_likelihood_the_order_of_options_is_not_asked_again():
    asked = []

    class Counts(Honest):
        def ask(self, each, context):
            asked.append(each)
            reply = super().ask(each, context)
            return reply._replace(choice=LETTERS.index(reply.text))

    contexts = ("memory", "shuffled")
    config = RunConfig(contexts, "likelihood")
    rows = ask_suite(questions(), Video(), Counts, config, model="fake", progress=False).rows
    assert len(asked) == 40 and len(rows) == 80
    by = {name: [row["strict"] for row in rows if row["context"] == name] for name in contexts}
    assert by["memory"] == by["shuffled"]
    run(questions(), Counts, contexts)
    assert len(asked) == 120, "by letter it is asked both ways"


def test_the_order_of_options_is_a_control_of_what_is_asked_blind_and_needs_no_video():
    found = questions()
    gone = found._replace(questions=tuple(replace(q, video="gone") for q in found.questions))
    asked = []

    class SaysB(Honest):
        def push(self, frame, notes):
            pytest.fail("watched")

        def ask(self, each, context):
            asked.append((each.options, context))
            return Reply("B")

    order = replace(gone.questions[0], answer=(1,))
    gone = gone._replace(questions=tuple(replace(order, id=str(n)) for n in range(40)))
    report = report_of(gone, SaysB, ("blind", "shuffled"))
    assert {context for _, context in asked} == {"blind"} and len(asked) == 80
    assert {OPTIONS} < {options for options, _ in asked}
    assert report["missing"] == {"videos": 0, "questions": 0}
    assert holds(report)["order of options"] is False, "B is right in the file's order alone"
    with pytest.raises(DatasetError, match="none of its 1 videos is there"):
        run(gone, SaysB, ("blind", "memory"))


def test_progress_is_told_after_each_video():
    told = []
    config = RunConfig(("memory",), "letter")
    ask_suite(
        questions(), Video(), Honest, config, model="fake", progress=False,
        on_progress=lambda *of: told.append(of),
    )  # fmt: skip
    assert told == [(10, 40), (20, 40), (30, 40), (40, 40)]


# -- two runs --


def test_two_runs_are_compared_question_by_question(tmp_path):
    found = film_questions()
    config = RunConfig(("memory",), "letter")
    for name, factory in (("a", Claims), ("b", SaysYes)):
        ask_suite(found, Video(), factory, config, model=name, out=tmp_path / name, progress=False)
    same = difference(tmp_path / "a", tmp_path / "a")
    assert same["all"]["p"] == 1.0 and same["all"]["difference"] == [0.0, 0.0, 0.0]
    worse = difference(tmp_path / "a", tmp_path / "b")
    assert worse["all"]["difference"][0] == -0.5 and worse["all"]["p"] < 1e-6
    assert worse["recall"]["difference"][0] == 0.0 and worse["never"]["difference"][0] == -1.0
    assert worse["all"]["only first right"] == 120
    text = diff_markdown(worse)
    assert "a, memory → b, memory" in text and "what did not" in text
    few = RunConfig(("memory",), "letter", limit=40)
    ask_suite(found, Video(), Claims, few, model="a", out=tmp_path / "few", progress=False)
    part = difference(tmp_path / "few", tmp_path / "a")
    assert part["only"] == [0, 200] and part["unlike"] == {"limit": [40, None]}
    ask_suite(questions(), Video(), Honest, config, model="a", out=tmp_path / "c", progress=False)
    with pytest.raises(DatasetError, match="was not asked with --context now, but with: memory"):
        difference(tmp_path / "a", tmp_path / "b", context="now")
    two = RunConfig(("memory", "now"), "letter")
    ask_suite(found, Video(), Claims, two, model="a", out=tmp_path / "two", progress=False)
    within = difference(tmp_path / "two", tmp_path / "two", context="now")
    assert within["runs"] == ["a, memory", "a, now"] and within["unfinished"] == []
    log = tmp_path / "two" / "predictions.jsonl"
    log.write_text("\n".join(log.read_text().splitlines()[:-1]) + "\n")
    cut = difference(tmp_path / "two", tmp_path / "a")
    assert cut["unfinished"] == [str(tmp_path / "two")]
    assert "two is not finished" in diff_markdown(cut)
    with pytest.raises(DatasetError, match="other questions"):
        difference(tmp_path / "a", tmp_path / "c")
    with pytest.raises(DatasetError, match="holds no answers of a run"):
        difference(tmp_path / "a", tmp_path)


# -- our sessions --


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("context", [name for name in CONTEXTS if name != "shuffled"])
def test_a_session_chooses_one_of_the_options_by_likelihood_in_every_context(model, context):
    watcher = SessionWatcher(model, RunConfig())
    for second in range(8):
        pixels = np.full((64, 64, 3), 30 * second, np.uint8)
        watcher.push(Frame(pixels, float(second), 1.0, second), ())
    reply = watcher.ask(Asked("What is there?", OPTIONS), context)
    assert reply.choice is not None and reply.text == OPTIONS[reply.choice]
    assert reply.tokens > 0 and watcher.num_bytes >= 0
    assert all(span.end <= 8.0 for span in reply.cited)
    assert reply == watcher.ask(Asked("What is there?", OPTIONS), context)._replace(
        answer=reply.answer
    )


def test_what_is_asked_blind_is_answered_as_by_a_session_that_saw_nothing(model):
    seeing, blind = (SessionWatcher(model, RunConfig()) for _ in range(2))
    for second in range(8):
        pixels = np.full((64, 64, 3), 200 * (second > 3), np.uint8)
        seeing.push(Frame(pixels, float(second), 1.0, second), ())
    seeing.end()
    for asked in (Asked("When was there a dog?"), Asked("What is there?", OPTIONS)):
        reply, empty = (watcher.ask(asked, "blind") for watcher in (seeing, blind))
        assert (reply.text, reply.seen, reply.tokens) == (empty.text, empty.seen, empty.tokens)
        assert reply.cited == () and seeing.ask(asked, "memory").cited


def test_where_wording_is_not_scored_controls_write_none_and_are_as_right(model):
    watchers = [SessionWatcher(model, RunConfig(wording=scored)) for scored in (True, False)]
    for second in range(8):
        pixels = np.full((64, 64, 3), 200 * (second > 3), np.uint8)
        for watcher in watchers:
            watcher.push(Frame(pixels, float(second), 1.0, second), ())
    for context in ("memory", "now", "uniform"):
        if context == "uniform":  # of closed scenes
            for watcher in watchers:
                watcher.end()
        said, silent = (watcher.ask(Asked("What is there?"), context) for watcher in watchers)
        assert said.text and bool(silent.text) == (context == "memory")
        assert (said.seen, said.cited, said.tokens) == (silent.seen, silent.cited, silent.tokens)
        assert (said.answer.method, silent.answer.method) == ("model", "model")
        chosen = watchers[1].ask(Asked("What is there?", OPTIONS), context)
        assert chosen.choice is not None


def test_an_answer_does_not_depend_on_what_was_asked_before(model):
    watcher = SessionWatcher(model, RunConfig())
    for second in range(8):
        pixels = np.full((64, 64, 3), 200 * (second > 3), np.uint8)
        watcher.push(Frame(pixels, float(second), 1.0, second), ())
    watcher.end()
    alone = watcher.ask(Asked("What happened after that?"), "memory")
    watcher.ask(Asked("When did the camera show a dog for the first time?"), "memory")
    again = watcher.ask(Asked("What happened after that?"), "memory")
    assert (again.text, again.cited) == (alone.text, alone.cited)
    assert all(len(each.turns) <= 1 for each in watcher._answerers.values())


def test_a_question_is_read_once_for_all_contexts(model, monkeypatch):
    watcher, read = SessionWatcher(model, RunConfig()), []
    inner = type(model).read_question
    monkeypatch.setattr(
        type(model), "read_question", lambda self, text: read.append(text) or inner(self, text)
    )
    watcher.push(Frame(np.zeros((64, 64, 3), np.uint8), 0.0, 1.0, 0), ())
    watcher.end()
    for context in ("memory", "blind", "now", "uniform", "captions", "other"):
        watcher.ask(Asked("When was there a dog?"), context)
    assert read == ["When was there a dog?"]


def test_each_context_answers_from_what_its_name_says(model):
    answerers = SessionWatcher(model, RunConfig())._answerers
    contexts = {name: answerers[name].config.context for name in ("now", "captions", "uniform")}
    assert contexts == {"now": "now", "captions": "captions", "uniform": "uniform"}
    assert answerers["uniform"].config.passages == asking.UNIFORM == 32
    assert answerers["memory"].config.context == model_default(model)


def model_default(model):
    return defaults_of(model).context


def test_the_option_of_the_likeliest_tokens_is_chosen_however_long():
    class Stated:
        reads = decoding = batches = None

        def log_probs(self, prompt, texts):
            return [[-1.0] * 4, [-2.0], [-9.0]]

    chooser = asking.Chooser(Stated(), "likelihood")
    chooser.options = ("one of four words", "short", "never")
    assert list(chooser.stream(["What?"], None)) == ["one of four words"] and chooser.chosen == 0


def test_a_reply_with_ends_of_lines_of_its_own_is_read_back(tmp_path):
    class Odd(Honest):
        def ask(self, asked, context):
            return super().ask(asked, context)._replace(text="a\u2028b\x85c\rd")

    config = RunConfig(("memory",), "letter")
    ask_suite(questions(4), Video(), Odd, config, model="m", out=tmp_path, progress=False)
    log = asking.read_answers(tmp_path / "predictions.jsonl")
    assert [row["text"] for _, rows, _ in log.units for row in rows] == ["a\u2028b\x85c\rd"] * 4
    assert log.finished


def test_the_option_that_is_chosen_does_not_depend_on_the_order(model):
    watcher = SessionWatcher(model, RunConfig())
    watcher.push(Frame(np.zeros((64, 64, 3), np.uint8), 0.0, 1.0, 0), ())
    texts = {watcher.ask(Asked("What?", order), "memory").text
             for order in (OPTIONS, OPTIONS[::-1], (*OPTIONS[2:], *OPTIONS[:2]))}  # fmt: skip
    assert len(texts) == 1


def test_by_letter_the_options_are_shown_and_the_question_alone_is_looked_for(model, monkeypatch):
    prompts, queries = [], []
    watcher = SessionWatcher(model, RunConfig(scorer="letter"))
    chat = type(model.language).chat
    monkeypatch.setattr(
        type(model.language), "chat", lambda self, c: prompts.append(c) or chat(self, c)
    )
    keys = type(model).sentence_keys
    monkeypatch.setattr(
        type(model), "sentence_keys", lambda self, s: queries.extend(s) or keys(self, s)
    )
    watcher.push(Frame(np.zeros((64, 64, 3), np.uint8), 0.0, 1.0, 0), ())
    watcher.end()
    long = tuple(f"{option} {'very ' * 30}much" for option in OPTIONS)
    reply = watcher.ask(Asked("Which colour is it?", long), "memory")
    assert reply.choice is None
    asked = prompts[-1][-1]
    assert asked.startswith("Which colour is it?\nA. red very") and "D. white" in asked
    assert asked.count("much") == 4, "no option is cut off"
    assert queries[0] == "Which colour is it?" and not any("very" in text for text in queries)


def test_what_is_said_later_is_not_known_yet(model):
    watcher = SessionWatcher(model, RunConfig())
    cues = {2: Note(2.0, 3.0, "the kettle boils"), 6: Note(6.0, 7.0, "the door opens")}
    for second in range(9):
        pixels = np.full((64, 64, 3), 200 * (second > 4), np.uint8)
        notes = (cues[second],) if second in cues else ()
        watcher.push(Frame(pixels, float(second), 1.0, second), notes)
        if second == 5:
            held = watcher._session.speech.notes
            assert [note.text for note in held] == ["the kettle boils"]
    watcher.end()
    answer = watcher.ask(Asked("What was said about the door?"), "memory")
    assert answer.seen and "the door opens" in answer.text


def test_what_has_options_is_chosen_from_them_whatever_else_it_could_be_computed_from(model):
    watcher = SessionWatcher(model, RunConfig())
    for second in range(6):
        pixels = np.full((64, 64, 3), 200 * (second > 3), np.uint8)
        notes = (Note(1.0, 2.0, "the kettle boils"),) if second == 1 else ()
        watcher.push(Frame(pixels, float(second), 1.0, second), notes)
    watcher.end()
    for text in ("What was said about the kettle?", "Where did I put the cup?"):
        open_ = watcher.ask(Asked(text), "memory")
        assert open_.choice is None and open_.answer.method == "computed", text
        chosen = watcher.ask(Asked(text, OPTIONS), "memory")
        assert chosen.choice is not None and chosen.answer.method == "model", text
        assert chosen.cited, "chosen blind"


def test_a_model_without_likelihoods_is_asked_for_letters(model):
    class Silent:
        reads, decoding, batches = model.reads, model.decoding, False

    with pytest.raises(ConfigError, match="choose --scorer letter"):
        asking.Chooser(Silent(), "likelihood")
    asking.Chooser(Silent(), "letter")


def test_frames_come_with_what_is_said_until_then_and_clips_one_behind_the_other(tmp_path):
    for number, start in enumerate(("10000000", "10000100")):
        name = tmp_path / f"DAY1_A1_JAKE_{start}.mp4"
        write_video(name, [np.full((360, 640, 3), 90 * number, np.uint8)] * 25)
    said = "1\n00:00:00,400 --> 00:00:00,900\nhello\n"
    (tmp_path / "DAY1_A1_JAKE_10000100.srt").write_text(said)
    videos = Videos(SUITES["egolife"], tmp_path)
    found = list(DECODED(videos, "A1_JAKE", 5.0))
    times = [round(frame.time, 2) for frame, _ in found]
    assert times == pytest.approx(
        [36_000 + t for t in (0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8)]
    )
    heard = [(frame.time, note) for frame, notes in found for note in notes]
    assert [(round(t, 2), n.text, round(n.start, 2)) for t, n in heard] == [
        (36_001.4, "hello", 36_001.4)
    ]


# -- the command --


def nextqa(folder):
    rows = [{"video_name": "v", "question_id": str(n), "question": f"What {n}?",
             "option": {"option 0": "red", "option 1": "green"}} for n in range(3)]  # fmt: skip
    folder.mkdir()
    (folder / "test_q.json").write_text(json.dumps(rows))
    answers = [{"question_id": str(n), "answer": 0, "type": "TN"} for n in range(3)]
    (folder / "test_a.json").write_text(json.dumps(answers))
    return folder


def test_a_suite_without_its_videos_says_so_and_leaves_with_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("streammem.models.registry.load", lambda *_, **__: pytest.fail("loaded"))
    assert main(["eval", "nextqa", str(nextqa(tmp_path / "nextqa"))]) == 1
    told = capsys.readouterr()
    assert told.out == "" and "none of its 1 videos is there" in told.err
    assert "nothing is scored" in told.err


def test_the_command_prints_a_report_whose_last_line_is_json_and_keeps_it(
    tmp_path, capsys, monkeypatch, model
):
    monkeypatch.setattr("streammem.models.registry.load", lambda *_, **__: model)
    folder, out = nextqa(tmp_path / "nextqa"), tmp_path / "run"
    line = ["eval", "nextqa", str(folder), "--context", "blind", "--controls", "-o", str(out)]
    monkeypatch.setattr("streammem.commands.evaluating.PROGRESS_S", 0.0)
    assert main(line) == 0
    told = capsys.readouterr()
    assert "3 of 3 questions are done" in told.err, "no terminal: lines instead of a bar"
    *_, last = told.out.splitlines()
    report = json.loads(last)
    assert report == json.loads((out / "report.json").read_text())
    scores = report["parts"]["all"]["contexts"]
    assert {name: found["strict"][3] for name, found in scores.items()} == {
        "blind": 3, "shuffled": 3,
    }  # fmt: skip
    assert {path.name for path in out.iterdir()} == {
        "predictions.jsonl", "report.md", "report.json", "report.png",
    }  # fmt: skip
    assert main(["eval", "diff", str(out), str(out)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["all"]["p"] == 1.0


@pytest.mark.parametrize(
    "more",
    [("--context", "shuffled"), ("--context", "dreams"), ("--scorer", "mood"), ("--limit", "0"),
     ("--predictions", "p.jsonl")],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_a_model_is_opened(tmp_path, capsys, more):
    assert main(["eval", "nextqa", str(nextqa(tmp_path / "nextqa")), *more]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_answers_that_rest_on_the_future_leave_with_1(tmp_path, capsys, monkeypatch):
    class Seer(Honest):
        def __init__(self, model, config):
            super().__init__()

        def ask(self, asked, context):
            return Reply("A", cited=(TimeSpan(18.0, 19.0),))

    monkeypatch.setattr(asking, "SessionWatcher", Seer)
    monkeypatch.setattr("streammem.models.registry.load", lambda *_, **__: None)
    row = {"task": "EPM", "video": "v", "question": "?", "options": OPTIONS, "gt": 0}
    rows = [{**row, "id": n, "realtime": 5} for n in range(20)]
    (tmp_path / "ovo_bench_new.json").write_text(json.dumps(rows))
    (tmp_path / "v.mp4").touch()
    assert main(["eval", "ovo", str(tmp_path)]) == 1
    assert "past only" in capsys.readouterr().err
