"""Units of the command line."""

import argparse

import pytest

from streammem.commands.options import Parser, byte_size, duration, seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90", 90.0),
        ("1.5", 1.5),
        ("1:30", 90.0),
        ("0:05.25", 5.25),
        ("90:00", 5400.0),
        ("1:02:03.5", 3723.5),
        ("100:00:00", 360_000.0),
    ],
)
def test_a_time_is_seconds_or_a_clock(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize(
    "text", ["", "x", "1:5", "1:75", "1:60:00", "1:2:3:4", "-1:30", "1h", "\u0663:\u0660\u0660"]
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="h:mm:ss"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500MB", 500_000_000),
        ("500mb", 500_000_000),
        ("1.5 GB", 1_500_000_000),
        ("2GiB", 2 << 30),
        ("4096", 4096),
        ("7b", 7),
    ],
)
def test_a_size_is_bytes_or_has_a_unit(text, value):
    assert byte_size(text) == value


@pytest.mark.parametrize("text", ["", "lots", "-5MB", "5 apples", "MB", "nan", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="500MB"):
        byte_size(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("7d", 604_800), ("1.5h", 5400), ("90m", 5400), ("2w", 1_209_600), ("3s", 3)],
)
def test_a_duration_has_a_unit(text, value):
    assert duration(text) == value


@pytest.mark.parametrize("text", ["", "7", "-7d", "7y", "d"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="as in 7d"):
        duration(text)


def test_a_wrong_argument_is_one_line_without_commands_for_the_terminal(capsys):
    with pytest.raises(SystemExit) as left:
        Parser(prog="streammem").parse_args(["a\x1b[2J\nb"])
    err = capsys.readouterr().err
    assert left.value.code == 2 and len(err.splitlines()) == 1
    assert err.startswith("streammem: ") and "\x1b" not in err
