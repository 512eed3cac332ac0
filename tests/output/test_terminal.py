import io
import signal

import pytest

from streammem.errors import ConfigError
from streammem.output.results import output
from streammem.output.terminal import LiveText, interrupts, note
from streammem.types import Caption, Note, Notice, Segment


def say(*pieces):
    """Write (segment id, piece) pairs; give what a terminal would get."""
    out = io.StringIO()
    live = LiveText(out)
    for number, piece in pieces:
        live.write_piece(Segment(number, 2.0 * number, 2.0 * number + 2, None, "cut"), piece)
    live.close()
    return out.getvalue()


def test_words_of_a_caption_share_a_line_and_captions_do_not():
    said = say((0, " A dog"), (0, " runs."), (1, "Night"), (1, "."))
    assert said == "[00:00.0-00:02.0] A dog runs.\n[00:02.0-00:04.0] Night.\n"
    assert say() == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("text", "reason", "shown"),
    [
        ("A dog runs.", None, "A dog runs."),
        ("A dog", "unsure", "A dog … (unsure)"),
        ("", "unsure", "(unsure)"),
    ],
)
@pytest.mark.parametrize("out", [io.StringIO, Terminal])
def test_a_line_ends_with_how_sure_it_is_on_terminals_only(text, reason, shown, out):
    out, caption = out(), Caption(3, 2.0, 4.0, text, 0.25, reason)
    live = LiveText(out)
    if text:
        live.write_piece(Segment(3, 2.0, 4.0, None, "cut"), text)
    live.end(caption)
    live.close()
    sure = " \x1b[2m0.25\x1b[0m" if out.isatty() else ""
    assert out.getvalue() == f"[00:02.0-00:04.0] {shown}{sure}\n"
    assert str(caption) == f"[00:02.0-00:04.0] {shown}"


def test_the_end_of_a_line_that_the_next_one_has_followed_writes_nothing():
    out = io.StringIO()
    live = LiveText(out)
    for number, word in enumerate(("One", "Two")):
        live.write_piece(Segment(number, 2.0 * number, 2.0 * number + 2, None, "cut"), word)
    live.end(Caption(0, 0.0, 2.0, "One", 0.1, "unsure"))
    assert out.getvalue() == "[00:00.0-00:02.0] One\n[00:02.0-00:04.0] Two"


@pytest.mark.parametrize("sign", ["\n", "\r", "\x1b[2J", "\x07", "\u2028", "\x9b"])
def test_no_words_can_break_the_line_or_command_the_terminal(sign):
    said = say((0, f"A{sign}dog"))
    assert said.count("\n") == 1 and said.endswith("dog\n")
    assert all(c.isprintable() for c in said[:-1])


@pytest.mark.parametrize("form", ["text", "jsonl", "srt", "vtt"])
def test_a_file_is_valid_after_every_event(tmp_path, form):
    path = tmp_path / "out"
    with output(form, path) as results:
        results.write(Caption(0, 0.0, 2.0, "A dog."))
        once = path.read_text()
        results.write(Caption(1, 2.0, 4.0, "Night."))
    assert "A dog." in once and once.endswith("\n")
    assert path.read_text().startswith(once)


def test_a_file_without_events_is_valid_too(tmp_path):
    with output("vtt", tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "WEBVTT\n\n"
    with output("text", tmp_path / "other"):
        pass
    assert (tmp_path / "other").read_text() == ""


def test_a_file_is_kept_until_there_is_a_result(tmp_path):
    path = tmp_path / "out"
    path.write_text("of last week")
    with pytest.raises(RuntimeError), output("srt", path) as results:
        results.write(Notice("nothing that this format shows"))
        raise RuntimeError("the source does not open")
    assert path.read_text() == "of last week"
    with pytest.raises(RuntimeError), output("srt", path) as results:
        results.write(Caption(0, 0.0, 2.0, "A dog."))
        raise RuntimeError("the source breaks off")
    assert path.read_text().endswith("A dog.\n\n")


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"), output("text", tmp_path):
        pass


@pytest.mark.parametrize(("form", "shown"), [("text", "\\u201cHi\\u201d"), ("jsonl", "“Hi”")])
def test_stdout_takes_every_sign_in_every_locale(monkeypatch, form, shown):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    with output(form, None) as results:
        results.write(Note(0.0, 1.0, "Hi" if form == "text" else "“Hi”"))
    assert shown in out.buffer.getvalue().decode("utf-8")


def test_pieces_of_an_answer_keep_their_lines_and_lose_their_commands(capsys):
    with output("text", None) as results:
        results.write_piece("A\x1b[2Jdog.\n")
        results.write_piece("A\u202ecat.")
    assert capsys.readouterr().out == "A [2Jdog.\nA cat."


def test_a_note_is_one_line_without_commands(capsys):
    note("a\x1b]0;b\n.mp4: \udcff no video")
    assert capsys.readouterr().err == "a ]0;b .mp4: \\udcff no video\n"


def test_the_first_interrupt_asks_and_the_second_leaves(capsys):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopping" in capsys.readouterr().err
