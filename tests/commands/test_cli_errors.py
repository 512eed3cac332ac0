import itertools
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
from safetensors.torch import save_file

from streammem.cli import main
from streammem.errors import SourceError, install_command
from streammem.models import checkpoint
from streammem.models.tiny.model import VideoModel
from tests.command_line import QUICK, SRT_CUE, VTT_CUE, events, record
from tests.video.clips import indexed_first, only_sound

# -- bad input: one line, the right code, no traceback --


def missing(folder):
    return folder / "no such file.mp4"


def empty(folder):
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def renamed_text(folder):
    (folder / "text.mp4").write_text("This is no video.\n" * 100)
    return folder / "text.mp4"


def audio_only(folder):
    return only_sound(folder / "sound.mp4")


def zero_frames(folder):
    content = indexed_first(record(folder / "a.mp4", (("red", 1),)), folder / "b.mp4").read_bytes()
    (folder / "head.mp4").write_bytes(content[: content.find(b"mdat") + 20])
    return folder / "head.mp4"


def empty_folder(folder):
    (folder / "pictures").mkdir()
    return folder / "pictures"


@pytest.mark.parametrize(
    "bad", [missing, empty, renamed_text, audio_only, zero_frames, empty_folder]
)
@pytest.mark.parametrize("command", [("caption",), ("scenes",), ("ask", "Why?"), ("find", "red")])
def test_a_source_that_cannot_be_used_is_one_line_and_1(run, tmp_path, bad, command):
    path = bad(tmp_path)
    code, out, err = run(command[0], path, *command[1:])
    assert code == 1 and out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("streammem: ") and path.name in err


def test_a_truncated_file_gives_its_results_a_warning_and_1(run, video, tmp_path):
    content = indexed_first(video, tmp_path / "fast.mp4").read_bytes()
    path = tmp_path / "cut off.mp4"
    path.write_bytes(content[: len(content) * 85 // 100])
    code, out, err = run("caption", path, "--format", "jsonl")
    assert code == 1
    *captions, warning = events(out)
    assert len(captions) >= 2 and {c["type"] for c in captions} == {"caption"}
    assert list(warning) == ["type", "message"] and warning["type"] == "warning"
    assert len(err.splitlines()) == 1 and "cut off.mp4" in err
    code, out, err = run("caption", path, "--format", "srt")
    assert code == 1 and len(SRT_CUE.findall(out)) == len(captions)
    code, out, err = run("ask", path, "Why?", "--format", "jsonl", *QUICK)
    assert code == 1 and [event["type"] for event in events(out)] == ["answer"]
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["caption", "scenes"])
def test_a_span_without_frames_is_told(run, video, command):
    code, out, err = run(command, video, "--start", "60")
    assert code == 1 and out == "" and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--fps", "0"), "fps"),
        (("--fps", "-1"), "fps"),
        (("--fps", "nan"), "fps"),
        (("--start", "-1"), "start"),
        (("--start", "5", "--end", "4"), "end"),
        (("--set", "passages"), "--set passages"),
        (("--set", "passages=0"), "passages"),
        (("--set", "passages=many"), "--set passages: 'many' is not of type int"),
        (("--set", "colour=red"), "--set colour: no such option"),
        (("--set", "scenes.floor=9"), "floor"),
        (("--set", "context=dreams"), "context"),
        (("--config", "nowhere.toml"), "nowhere.toml"),
        (("--temperature", "-1"), "temperature"),
        (("--temperature", "nan"), "temperature"),
        (("--top-p", "0"), "top-p"),
        (("--num-beams", "0"), "num-beams"),
        (("--num-beams", "2", "--temperature", "1"), "num-beams"),
        (("--max-new-tokens", "0"), "max-new-tokens"),
        (("--seed", "-1"), "seed"),
        (("-o", "no/such/folder/out.srt"), "no/such/folder"),
        (("-o", "."), "folder"),
        (("--sheet", "no/such/folder/a.png"), "no/such/folder"),
        (("--sheet", "a.png", "-o", "a.png"), "two files"),
        (
            ("--speech", "whisper-tiny"),
            "speech whisper-tiny: no such recogniser; give auto, on, off",
        ),
        (("--speech-language", ""), "speech-language is empty"),
        (("--budget", "5MB"), "--memory"),
    ],
)
def test_a_wrong_argument_is_one_line_and_2_before_anything_is_opened(
    capsys, monkeypatch, tmp_path, arguments, named
):
    monkeypatch.chdir(tmp_path)  # files may be written here
    opened = pytest.fail
    monkeypatch.setattr(
        checkpoint, "load_checkpoint", lambda *_, **__: opened("the model was loaded")
    )
    code = main(["caption", "no such file.mp4", *arguments])
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("streammem: ") and named in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("watch-tv", "a.mp4"),
        ("caption",),
        ("caption", "a.mp4", "--format", "xml"),
        ("caption", "a.mp4", "--fps", "fast"),
        ("caption", "a.mp4", "--context", "dreams"),
        ("caption", "a.mp4", "--no-such-flag"),
        ("ask", "a.mp4"),
        ("ask", "a.mp4", "Why?", "--format", "srt"),
        ("scenes", "a.mp4", "--format", "srt"),
        ("caption", "a.mp4", "--form", "srt"),
        ("caption", "a.mp4", "--reader", "vlc"),
        ("caption", "a.mp4", "--start", "1:75"),
        ("memory",),
        ("memory", "burn", "trips"),
        ("memory", "forget", "trips"),
        ("memory", "prune", "trips", "--budget", "lots"),
        ("memory", "prune", "trips", "--keep", "7"),
    ],
)
def test_arguments_that_do_not_parse_leave_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    captured = capsys.readouterr()
    assert left.value.code == 2 and captured.out == ""
    assert len(captured.err.splitlines()) == 1 and captured.err.startswith("streammem: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("memory", "forget", "trips", "--between", "now", "then"),
        ("ask", "a.mp4", " "),
        ("find", "a.mp4", ""),
        ("find", "a.mp4", "red", "--count", "0"),
        ("eval", "taste", "folder"),
        ("models", "pull", "gpt-7"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line_and_2(capsys, monkeypatch, arguments):
    monkeypatch.setattr(
        checkpoint, "load_checkpoint", lambda *_, **__: pytest.fail("the model was loaded")
    )
    code = main(list(arguments))
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "" and len(captured.err.splitlines()) == 1


def test_a_source_is_never_written_over(run, video):
    before = os.path.getsize(video)
    code, _, err = run("caption", video, "-o", video)
    assert code == 2 and "the source itself" in err
    assert os.path.getsize(video) == before


@pytest.mark.parametrize("bad", [missing, renamed_text, audio_only])
@pytest.mark.parametrize("command", [("caption",), ("scenes",), ("ask", "Why?"), ("find", "red")])
def test_a_source_that_cannot_be_used_leaves_the_output_as_it_was(run, tmp_path, bad, command):
    path = tmp_path / "out"
    path.write_text("of last week")
    assert run(command[0], bad(tmp_path), *command[1:], "-o", path)[0] == 1
    assert path.read_text() == "of last week"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_an_output_that_may_not_be_written_is_2(run, video, tmp_path):
    path = tmp_path / "out"
    path.touch(0o400)
    code, out, err = run("caption", video, "-o", path)
    assert (code, out) == (2, "") and "cannot be written" in err


def test_a_missing_decord_is_told_with_its_extra(run, video, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    code, out, err = run("scenes", video, "--reader", "decord")
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert install_command("decord") in err


def test_an_eval_whose_figures_have_no_place_is_2_before_anything_is_opened(capsys, monkeypatch):
    monkeypatch.setattr(
        checkpoint, "load_checkpoint", lambda *_, **__: pytest.fail("the model was loaded")
    )
    for flag in ("--json", "--predictions"):
        assert main(["eval", "captions", "folder", flag, "no/such/folder/file"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_closed_streams_are_no_error():
    script = "import sys; sys.stdout = sys.stderr = None; from streammem.cli import main; "
    for arguments, code in ((["info"], 0), (["memory", "info", "nowhere"], 1)):
        done = subprocess.run(
            [sys.executable, "-c", f"{script}sys.exit(main({arguments}))"], capture_output=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


def test_a_command_that_holds_nothing_leaves_at_the_first_interrupt(run, monkeypatch):
    from streammem.memory import upkeep

    monkeypatch.setattr(upkeep, "info", lambda store: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr("streammem.memory.store.Store.open", lambda *_: nullcontext())
    assert run("memory", "info", "trips") == (130, "", "")


def test_an_unknown_model_is_2_and_a_corrupt_one_1(video, tmp_path, capsys):
    assert main(["caption", video, "--model", "streammem-huge"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "streammem-huge: no such model" in err
    assert main(["caption", video, "--device", "abacus"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

    packaged = checkpoint.PRESETS["streammem-tiny"]
    (tmp_path / "config.json").write_bytes((packaged / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x08" + bytes(200))
    assert main(["caption", video, "--model", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "missing or corrupt" in err


def test_weights_that_were_not_pulled_are_told_with_the_command(
    video, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("STREAMMEM_HOME", str(tmp_path))
    assert main(["caption", video]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert "streammem models pull efficientnet-lite2" in captured.err
    # A corrupt backbone is told too.
    (tmp_path / "efficientnet-lite2").mkdir()
    (tmp_path / "efficientnet-lite2" / "ready").touch()
    save_file({}, tmp_path / "efficientnet-lite2" / "model.safetensors")
    assert main(["caption", video]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_1(run, video):
    code, _, err = run("scenes", video, "-o", "/dev/full")
    assert "/dev/full: " in err
    assert code == 1 and len(err.splitlines()) == 1 and "No space left" in err


# -- Ctrl-C --


@pytest.fixture
def interrupted_at(monkeypatch):
    """Presses Ctrl-C while the frames of these numbers are perceived."""

    def interrupted_at(*numbers):
        perceive, seen = VideoModel.perceive, itertools.count()

        def interrupting(self, picture):
            if next(seen) in numbers:
                signal.raise_signal(signal.SIGINT)
            return perceive(self, picture)

        monkeypatch.setattr(VideoModel, "perceive", interrupting)

    return interrupted_at


@pytest.mark.parametrize("form", ["srt", "vtt", "jsonl", "text"])
def test_an_interrupt_closes_what_is_open_and_leaves_with_130(
    run, video, tmp_path, interrupted_at, form
):
    interrupted_at(10)
    path = tmp_path / "out"
    code, out, err = run("caption", video, "--format", form, "-o", path)
    assert code == 130 and out == "" and "stopping" in err
    text = path.read_text()
    last = {
        "srt": lambda: [cue[1:3] for cue in SRT_CUE.findall(text)],
        "vtt": lambda: [cue[:2] for cue in VTT_CUE.findall(text)],
        "jsonl": lambda: [(e["start"], e["end"]) for e in events(text)],
        "text": lambda: [re.match(r"\[(.+?)-(.+?)\]", line).groups() for line in text.splitlines()],
    }[form]()
    assert len(last) == 2  # red was closed before; blue was open
    assert str(last[-1][0]).replace(",", ".").endswith(("03.000", "3.0"))
    if form == "srt":
        assert SRT_CUE.sub("", text).strip() == ""


def test_a_second_interrupt_leaves_at_once(run, video, tmp_path, interrupted_at):
    interrupted_at(7, 8)
    code, out, _ = run("scenes", video, "--format", "jsonl")
    assert code == 130
    events(out)  # whole lines


def test_an_interrupt_before_the_first_frame_is_no_error(run, video, monkeypatch):
    from streammem.commands import opening as commands

    original = commands.open_with

    def opening(source, options):
        signal.raise_signal(signal.SIGINT)
        return original(source, options)

    monkeypatch.setattr(commands, "open_with", opening)
    for command in (("caption", video), ("scenes", video, "--fps", "2"), ("ask", video, "Why?")):
        code, out, _ = run(*command)
        assert (code, out) == (130, "")


def test_the_handler_of_before_is_put_back(run, video):
    before = signal.getsignal(signal.SIGINT)
    run("scenes", video)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_reader_that_leaves_is_no_error(tiny, video, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            pass

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    monkeypatch.setattr(sys, "stdout", Closed())
    assert main(["scenes", video]) == 0
    assert main(["caption", video]) == 0


# -- errors inside threads --


def test_a_source_that_fails_later_is_one_line_and_1_after_its_results(run, video, monkeypatch):
    from streammem.video.file import FileSource

    pictures = FileSource._frames

    def breaking(self):
        for number, frame in enumerate(pictures(self)):
            if number == 12:
                raise SourceError(f"{self.name}: the disk was pulled out")
            yield frame

    monkeypatch.setattr(FileSource, "_frames", breaking)
    code, out, err = run("caption", video, "--format", "jsonl")
    assert code == 1 and len(events(out)) == 2
    assert len(err.splitlines()) == 1 and "pulled out" in err
