import argparse
import re
import shlex
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest

from streammem import __version__
from streammem.cli import build_parser, main
from streammem.engine.session import Session
from streammem.models import checkpoint
from streammem.models.backbones.weights import SOURCES, is_pulled
from streammem.types import Answer, Evidence
from tests.command_line import QUICK, SRT_CUE, VTT_CUE, events

# -- events, to the letter --


def test_scenes_are_jsonl_segments_that_tile_the_video(run, video):
    code, out, err = run("scenes", video, "--format", "jsonl")
    assert (code, err) == (0, "")
    segments = events(out)
    assert [list(s) for s in segments] == [["type", "id", "start", "end", "depth", "reason"]] * 3
    assert [(s["type"], s["id"], s["start"], s["end"], s["reason"]) for s in segments] == [
        ("segment", 0, 0.0, 3.0, "cut"),
        ("segment", 1, 3.0, 7.0, "cut"),
        ("segment", 2, 7.0, 10.0, "end"),
    ]
    assert segments[0]["depth"] > 0.65 and segments[2]["depth"] is None


def test_captions_are_jsonl_captions_only(run, video):
    code, out, err = run("caption", video, "--format", "jsonl")
    assert (code, err) == (0, "")
    captions = events(out)
    for caption in captions:
        assert list(caption)[:5] == ["type", "segment", "start", "end", "text"]
        assert caption["type"] == "caption" and caption["text"]
    assert [(c["segment"], c["start"], c["end"]) for c in captions] == [
        (0, 0.0, 3.0),
        (1, 3.0, 7.0),
        (2, 7.0, 10.0),
    ]


def test_an_answer_is_one_jsonl_object_with_its_evidence(run, video):
    code, out, err = run("ask", video, "What was red?", "--format", "jsonl", *QUICK)
    assert (code, err) == (0, "")
    (answer,) = events(out)
    assert list(answer) == ["type", "question", "text", "seen", "method", "evidence"]
    assert (answer["type"], answer["question"], answer["method"]) == (
        "answer",
        "What was red?",
        "model",
    )
    assert isinstance(answer["seen"], bool)
    spans = {0: (0.0, 3.0), 1: (3.0, 7.0), 2: (7.0, 10.0)}
    assert len(answer["evidence"]) == 3
    for item in answer["evidence"]:
        keys = ["source", "segment", "start", "end", "score", "keyframe", "caption", "speech"]
        keys += ["matched", "cosine"]
        assert list(item) == keys
        assert item["source"] == video
        assert (item["start"], item["end"]) == spans[item["segment"]]
        assert item["caption"] and item["speech"] is None


def test_moments_are_evidence_with_a_rank(run, video):
    code, out, err = run("find", video, "something blue", "--count", "2", "--format", "jsonl")
    assert (code, err) == (0, "")
    moments = events(out)
    assert [moment["rank"] for moment in moments] == [1, 2]
    keys = ["source", "segment", "start", "end", "score", "keyframe", "caption", "speech", "rank"]
    keys += ["matched", "cosine"]
    assert all(list(moment) == ["type", *keys] for moment in moments)
    assert {moment["type"] for moment in moments} == {"moment"}


# -- the other formats --


def test_text_captions_stream_to_stdout_a_line_each(run, video):
    code, out, err = run("caption", video)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line[:17] for line in lines] == [
        "[00:00.0-00:03.0]",
        "[00:03.0-00:07.0]",
        "[00:07.0-00:10.0]",
    ]
    texts = [event["text"] for event in events(run("caption", video, "--format", "jsonl")[1])]
    assert [line[18:].strip() for line in lines] == texts


def test_srt_and_vtt_are_valid_and_say_what_jsonl_says(run, video):
    texts = [event["text"] for event in events(run("caption", video, "--format", "jsonl")[1])]
    srt = run("caption", video, "--format", "srt")[1]
    cues = SRT_CUE.findall(srt)
    assert [cue[0] for cue in cues] == ["1", "2", "3"]
    assert [cue[1:3] for cue in cues][:2] == [
        ("00:00:00,000", "00:00:03,000"),
        ("00:00:03,000", "00:00:07,000"),
    ]
    assert [cue[3] for cue in cues] == texts
    assert SRT_CUE.sub("", srt).strip() == ""
    vtt = run("caption", video, "--format", "vtt")[1]
    assert vtt.startswith("WEBVTT\n\n")
    assert [cue[2] for cue in VTT_CUE.findall(vtt)] == texts


def test_a_text_answer_comes_with_its_evidence_below(run, video):
    code, out, _ = run("ask", video, "What was red?", *QUICK)
    assert code == 0
    text, *evidence = [line for line in out.splitlines() if not line.startswith("  not seen")]
    assert text and not text.startswith(" ")
    assert len(evidence) == 3 and all(line.startswith("  [0") for line in evidence)


@pytest.mark.parametrize("form", ["text", "jsonl", "srt", "vtt"])
def test_an_output_file_gets_the_results_and_stdout_nothing(run, video, tmp_path, form):
    path = tmp_path / "out"
    code, out, err = run("caption", video, "--format", form, "-o", path)
    assert (code, out) == (0, "")
    # The words appear on the terminal meanwhile, and are no result there.
    assert len(err.splitlines()) == 3
    printed = run("caption", video, "--format", form)[1]
    assert [" ".join(line.split()) for line in path.read_text().splitlines()] == [
        " ".join(line.split()) for line in printed.splitlines()
    ]


def test_a_contact_sheet_is_drawn(run, video, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra streammem[train] is not installed")
    sheet = tmp_path / "sheet.png"
    code, out, err = run("caption", video, "--format", "jsonl", "--sheet", sheet)
    assert code == 0 and len(events(out)) == 3
    assert err == f"wrote {sheet}\n"
    assert (tmp_path / "sheet.png").read_bytes()[1:4] == b"PNG"


# -- options reach what they name --


def test_start_end_and_fps_choose_what_is_seen(run, video):
    scenes = ("scenes", video, "--format", "jsonl")
    for rate in ((), ("--fps", "8"), ("--fps", "2")):
        segments = events(run(*scenes, *rate, "--start", "2", "--end", "5.95")[1])
        assert [(s["start"], s["end"]) for s in segments] == [(2.0, 3.0), (3.0, 5.95)]
    every, few = (run("caption", video, "--fps", rate, "-v")[1] for rate in ("8", "0.2"))
    assert len(every.splitlines()) == 3 > len(few.splitlines())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--set", "passages=2"), 2),
        (("--set", "context=now"), 1),  # the present
        (("--context", "now"), 1),
        (("--set", "passages=2", "--context", "uniform"), 2),
    ],
)
def test_options_reach_the_session(run, video, arguments, expected):
    answer = events(run("ask", video, "Why?", "--format", "jsonl", *QUICK, *arguments)[1])[0]
    assert len(answer["evidence"]) == expected


def test_a_configuration_file_is_laid_under_the_flags(run, video, tmp_path):
    path = tmp_path / "options.toml"
    path.write_text("passages = 1\n[scenes]\nmax_frames = 4\n")
    arguments = ("--config", path, "--format", "jsonl", *QUICK)
    answer = events(run("ask", video, "Why?", *arguments)[1])[0]
    assert len(answer["evidence"]) == 1
    answer = events(run("ask", video, "Why?", *arguments, "--set", "passages=2")[1])[0]
    assert len(answer["evidence"]) == 2
    captions = events(run("caption", video, "--config", path, "--format", "jsonl")[1])
    assert [c["end"] for c in captions] == [2.0, 3.0, 5.0, 7.0, 9.0, 10.0]


def test_scenes_obey_the_options_too(run, video):
    """The command looks at every frame, and still lets embeddings judge by these options."""
    ends = [s["end"] for s in events(run("scenes", video, "--format", "jsonl")[1])]
    assert ends == [3.0, 7.0, 10.0]
    arguments = ("scenes", video, "--format", "jsonl", "--fps", "2", "--set", "scenes.floor=4")
    assert [s["end"] for s in events(run(*arguments)[1])] == [10.0]
    seen = {}
    from streammem.perception import scenes

    original = scenes.find_scenes

    def finding(perceiver, source, stop, on_time, config):
        seen["floor"] = config.floor
        return original(perceiver, source, stop, on_time, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "find_scenes", finding)
        run("scenes", video, "--set", "scenes.floor=3")
    assert seen == {"floor": 3.0}


def test_an_option_changes_nothing_but_itself(video, monkeypatch, capsys, model):
    """What a model was fitted with stays, when a neighbouring option is stated."""
    from dataclasses import replace

    fitted = replace(model, scenes=replace(model.scenes, floor=3.9))
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda name="", *, device="cpu": fitted)
    seen = {}
    monkeypatch.setattr(Session, "__init__", watched(Session.__init__, seen))
    arguments = ("--set", "scenes.min_frames=3", "--temperature", "0.5")
    assert main(["scenes", video, *arguments]) == 0
    assert seen["config"].scenes == replace(fitted.scenes, min_frames=3)
    assert seen["config"].caption == replace(model.decoding, temperature=0.5)


def watched(original, seen):
    def init(self, *arguments, **options):
        original(self, *arguments, **options)
        seen["config"] = self.config

    return init


def test_decoding_flags_reach_the_language_model(run, video):
    longer = events(run("caption", video, "--format", "jsonl", "--max-new-tokens", "9")[1])
    shorter = events(run("caption", video, "--format", "jsonl", "--max-new-tokens", "2")[1])
    assert all(len(s["text"]) <= 2 < len(t["text"]) for s, t in zip(shorter, longer, strict=True))
    sampled = [
        run("caption", video, "--format", "jsonl", "--temperature", "1", "--seed", seed)[1]
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    beams = events(run("caption", video, "--format", "jsonl", "--num-beams", "2", *QUICK)[1])
    assert len(beams) == 3
    asked = run("caption", video, "--format", "jsonl", "--prompt", "What colour?")[1]
    assert asked != run("caption", video, "--format", "jsonl")[1]


@pytest.mark.parametrize("reader", ["auto", "pyav", "decord"])
def test_every_reader_gives_the_same_scenes(run, video, reader):
    if reader == "decord":
        pytest.importorskip("decord", reason="the extra streammem[decord] is not installed")
    for rate in ((), ("--fps", "2")):
        code, out, err = run("scenes", video, "--format", "jsonl", "--reader", reader, *rate)
        assert (code, err) == (0, "")
        assert [event["end"] for event in events(out)] == [3.0, 7.0, 10.0]


@pytest.mark.parametrize("choice", ["auto", "off"])
def test_without_subtitles_captions_are_the_same(run, video, choice):
    plain = run("caption", video, "--format", "jsonl")
    assert run("caption", video, "--format", "jsonl", "--speech", choice) == plain


@pytest.mark.parametrize(
    ("name", "is_told"),
    [("film.srt", True), ("film.en.vtt", True), ("film.captions.srt", False), ("film.txt", False)],
)
def test_captions_that_will_be_read_as_subtitles_are_told(run, video, tmp_path, name, is_told):
    film, written = tmp_path / "film.mp4", tmp_path / name
    shutil.copy(video, film)
    code, _, err = run("caption", film, "--format", "srt", "-o", written)
    heard = events(run("caption", film, "--format", "jsonl")[1])
    assert (code, any(event["type"] == "note" for event in heard)) == (0, is_told)
    assert (f"as to {written.stem}.captions{written.suffix}" in err) == is_told
    (tmp_path / "other").mkdir()
    err = run("caption", film, "--format", "srt", "-o", tmp_path / "other" / name)[2]
    assert "named like the video" not in err


def test_an_answer_commands_no_terminal(run, video, monkeypatch):
    def ask(self, question, on_text=None, pictures=(), between=None):
        seen = Evidence("a.mp4", 0, 0.0, 3.0, 0.5, caption="A\x1b[2J\ndog.")
        for piece in ("Red\x1b]0;", "evil\x07\n", "and blue."):
            if on_text:
                on_text(piece)
        return Answer(question, "Red\x1b]0;evil\x07\nand blue.", True, "model", (seen,))

    monkeypatch.setattr(Session, "ask", ask)
    code, out, err = run("ask", video, "Why?")
    assert (code, err) == (0, "")
    assert out == "Red ]0;evil \nand blue.\n  [00:00.0-00:03.0] score 0.50 A [2J dog.\n"
    (answer,) = events(run("ask", video, "Why?", "--format", "jsonl")[1])
    assert "\x1b" in answer["text"]  # a program gets what was said


# -- the rest --


def actions(parser):
    """The commands below a parser, and the commands below those."""
    for found in parser._actions:
        if isinstance(found, argparse._SubParsersAction):
            for name, below in found.choices.items():
                yield name
                yield from (f"{name} {action}" for action in actions(below))


@pytest.mark.parametrize("command", [*actions(build_parser())])
def test_every_command_explains_itself(capsys, command):
    with pytest.raises(SystemExit) as left:
        main([*command.split(), "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: streammem {command} ")


@pytest.mark.parametrize("command", ["", *actions(build_parser())])
def test_examples_in_help_parse(capsys, command):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  streammem "):
            typed = re.split(r" {2,}| > ", line.strip())[0]
            assert command in typed
            build_parser().parse_args(shlex.split(typed)[1:])


def test_help_shows_examples_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0 and "exit codes:" in out
    assert out.count("\n  streammem ") >= 5
    for command in ("caption", "ask", "find", "scenes", "memory", "models", "info", "eval"):
        assert re.search(rf"^ +{command}\b", out, re.MULTILINE)


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"streammem {__version__}\n"


def test_models_are_listed_with_what_is_here(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("STREAMMEM_HOME", str(tmp_path))
    for arguments in (["models", "list"], ["models"]):
        assert main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        names = [line.split()[0] for line in lines]
        presets, others = names[: -len(SOURCES)], names[-len(SOURCES) :]
        assert presets[0] == "streammem-tiny" and "smolvlm2-256m" in presets
        assert others == [*SOURCES]
        assert all("not pulled" in line for line in lines)
    (tmp_path / "all-minilm-l6-v2").mkdir()
    (tmp_path / "all-minilm-l6-v2" / "ready").touch()
    main(["models", "list"])
    ready = [line for line in capsys.readouterr().out.splitlines() if " ready " in line]
    assert len(ready) == 1 and ready[0].startswith("all-minilm-l6-v2")


def test_info_is_text_or_one_json_object(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert main(["info", "--format", "jsonl"]) == 0
    (facts,) = events(capsys.readouterr().out)
    assert facts["streammem"] == __version__ and facts["torch"]
    assert {"cores", "threads", "home", "STREAMMEM_HOME", "STREAMMEM_DATA"} <= facts.keys()
    assert [line.split()[0] for line in text.splitlines()] == [k.split()[0] for k in facts]


def test_importing_and_asking_for_help_does_not_import_torch():
    script = (
        "import sys, streammem, streammem.cli\n"
        "try: streammem.cli.main(['caption', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'faiss', 'av'} & sys.modules.keys()\n"
        "assert streammem.__version__ and 'load' in dir(streammem) or streammem.__all__\n"
        "try: streammem.nothing\n"
        "except AttributeError: pass\n"
        "else: raise SystemExit('an unknown name was found')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_where_it_is_said_to_be():
    import streammem

    for name in streammem.__all__:
        assert getattr(streammem, name).__name__ == name


# -- with the real weights --


BACKBONES = checkpoint.backbones_of(checkpoint.PRESETS["streammem-tiny"])


@pytest.mark.skipif(
    not all(map(is_pulled, BACKBONES)),
    reason="the default model's backbones are not pulled (streammem models pull)",
)
def test_the_default_model_captions_a_video_of_two_scenes(tmp_path, capsys):
    rng = np.random.default_rng(0)
    meadow = np.zeros((96, 128, 3), np.uint8)
    meadow[:48], meadow[48:] = (120, 180, 250), (60, 140, 40)
    night = rng.integers(0, 25, (96, 128, 3), np.uint8)
    night[20:40, 50:70] = 250
    with av.open(str(tmp_path / "two.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=2, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for pixels in [meadow] * 6 + [night] * 6:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    arguments = ("--format", "jsonl", "--max-new-tokens", "10", "--min-confidence", "0")
    assert main(["caption", str(tmp_path / "two.mp4"), *arguments]) == 0
    captured = capsys.readouterr()
    captions = events(captured.out)
    assert [(c["start"], c["end"]) for c in captions] == [(0.0, 3.0), (3.0, 6.0)]
    texts = [c["text"] for c in captions]
    assert all(texts) and texts[0] != texts[1]
    assert captured.err == ""
