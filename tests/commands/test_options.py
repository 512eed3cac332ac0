"""Units of the command line."""

import argparse
from dataclasses import fields

import pytest

from streammem.cli import build_parser
from streammem.commands import options
from streammem.commands.options import Parser, byte_size, duration, given, seconds, source_options
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch_options import DROPS, WatchOptions
from streammem.errors import ConfigError
from streammem.models.backbones.sampling import GenerationConfig
from streammem.server.limits import Limits
from streammem.video import SourceOptions


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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("index films --memroy x", "--memory (--memroy is no option; did you mean --memory?); see"),
        ("index films --memroy=x", "--memory (--memroy is no option; did you mean --memory?); see"),
        ("memory prune trips --bugdet 4MB", "(--bugdet is no option; did you mean --budget?); see"),
        ("caption a.mp4 --qqq", "(--qqq is no option); see streammem caption --help"),
        ("index -- films --memroy", "required: --memory; see streammem index --help"),
        ("caption a.mp4 b.mp4", "unrecognized arguments: b.mp4; see streammem caption --help"),
    ],
)
def test_a_misspelled_option_is_named_with_the_nearest_one(words, told, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(words.split())
    assert told in capsys.readouterr().err


# -- flags that stand for options --

TABLES = {
    SourceOptions: options.SOURCE_FLAGS,
    WatchOptions: (*options.LIVE_FLAGS, *options.WATCH_FLAGS),
    SessionConfig: (*options.ANSWER_FLAGS, options.TIMEZONE),
    GenerationConfig: options.DECODING_FLAGS,
    Limits: options.LIMIT_FLAGS,
}


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
def test_every_flag_of_a_table_sets_a_field_of_its_options(kind):
    known = {field.name for field in fields(kind)}
    assert {flag.option for flag in TABLES[kind]} <= known


def test_the_choices_of_drop_are_those_of_the_option():
    (drop,) = (flag for flag in options.LIVE_FLAGS if flag.option == "drop")
    assert drop.read["choices"] == DROPS


def test_flags_that_are_left_out_leave_the_defaults():
    arguments = build_parser().parse_args(["watch", "a.mp4"])
    assert source_options(arguments) == SourceOptions(reconnect=True)
    assert options.watch_options(arguments) == WatchOptions()
    assert source_options(build_parser().parse_args(["caption", "a.mp4"])) == SourceOptions()
    assert given(options.ANSWER_FLAGS, arguments) == {}


def test_flags_that_are_given_set_their_options():
    typed = "--fps 4 --start 1:00 --end 90 --sparse --reader decord --drop never --refresh 1m"
    typed += " --alert dog --alert cat --stats 0s --pictures seen"
    arguments = build_parser().parse_args(["watch", "a.mp4", *typed.split()])
    wanted = SourceOptions(4.0, 60.0, 90.0, sparse=True, reader="decord", reconnect=True)
    assert source_options(arguments) == wanted
    watched = options.watch_options(arguments)
    assert (watched.drop, watched.refresh_s, watched.stats_s) == ("never", 60.0, 0.0)
    assert watched.alerts == ("dog", "cat") and str(watched.alerting.pictures) == "seen"


def test_a_refresh_of_no_time_is_refused_rather_than_taken_for_the_default():
    arguments = build_parser().parse_args(["watch", "a.mp4", "--refresh", "0s"])
    with pytest.raises(ConfigError, match="refresh_s must be above 0"):
        options.watch_options(arguments)


@pytest.mark.parametrize(
    ("words", "form"),
    [
        ("caption a.mp4", "text"),
        ("caption a.mp4 -o a.captions.srt", "srt"),
        ("caption a.mp4 -o a.captions.VTT", "vtt"),
        ("watch webcam:0 -o day.jsonl", "jsonl"),
        ("memory export trips -o trips.parquet", "parquet"),
        ("caption a.mp4 --format text -o a.captions.srt", "text"),
        ("caption a.mp4 -o a.captions.srt --format jsonl", "jsonl"),
        ("caption a.mp4 -o a.parquet", "text"),
        ("ask a.mp4 Why? -o why.srt", "text"),  # an answer has no place in subtitles
        ("caption a.mp4 -o captions", "text"),
    ],
)
def test_results_have_the_format_that_their_file_ends_with_unless_one_is_given(words, form):
    assert build_parser().parse_args(words.split()).format == form


@pytest.mark.parametrize("command", ["ask", "find", "summary", "scenes", "plan"])
def test_help_offers_only_the_formats_that_a_command_writes(command, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args([command, "--help"])
    assert "--format {text,jsonl}" in capsys.readouterr().out
