import io
import signal

import pytest

from streammem.errors import ConfigError
from streammem.terminal import LiveText, interrupts, output, write
from streammem.types import Caption, Segment


def say(*pieces):
    """Write (segment id, piece) pairs; give what a terminal would get."""
    out = io.StringIO()
    live = LiveText(out)
    for number, piece in pieces:
        live.say(Segment(number, 2.0 * number, 2.0 * number + 2, None, "cut"), piece)
    live.close()
    return out.getvalue()


def test_words_of_a_caption_share_a_line_and_captions_do_not():
    said = say((0, " A dog"), (0, " runs."), (1, "Night"), (1, "."))
    assert said == "[00:00.0-00:02.0] A dog runs.\n[00:02.0-00:04.0] Night.\n"
    assert say() == ""


@pytest.mark.parametrize("sign", ["\n", "\r", "\x1b[2J", "\x07", "\u2028", "\x9b"])
def test_no_words_can_break_the_line_or_command_the_terminal(sign):
    said = say((0, f"A{sign}dog"))
    assert said.count("\n") == 1 and said.endswith("dog\n")
    assert all(c.isprintable() for c in said[:-1])


@pytest.mark.parametrize("form", ["text", "jsonl", "srt", "vtt"])
def test_a_file_is_valid_after_every_event(tmp_path, form):
    path = tmp_path / "out"
    with output(form, path) as (renderer, out):
        write(renderer, out, Caption(0, 0.0, 2.0, "A dog."))
        once = path.read_text()
        write(renderer, out, Caption(1, 2.0, 4.0, "Night."))
    assert "A dog." in once and once.endswith("\n")
    assert path.read_text().startswith(once)


def test_a_file_without_events_is_valid_too(tmp_path):
    with output("vtt", tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "WEBVTT\n\n"


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"), output("text", tmp_path):
        pass


def test_the_first_interrupt_asks_and_the_second_leaves(capsys):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopping" in capsys.readouterr().err
