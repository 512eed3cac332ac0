"""Every example of every --help can be typed as it stands."""

import re
import shlex
import shutil

import pytest
from PIL import Image

from streammem.cli import build_parser
from tests.command_line import record

REMARK = re.compile(r" {3,}\S.*| {2,}(?=[a-z]).*| > \S+$")
# Servers, which end with their clients; what trains, or fetches from elsewhere; standard input.
# So do processes of their own, which open the default model.
NOT_RUN = re.compile(
    r"streammem (serve|ui|mcp|train|eval|index|models pull|watch -$|watch --sources)"
    r"|hf:google|archive"
)


def commands_of(parser, name="streammem"):
    """Give the parser of every command with its name, those of ``memory`` and the like too."""
    yield name, parser
    for action in parser._actions:
        if is_command(action):
            for word, below in action.choices.items():
                yield from commands_of(below, f"{name} {word}")


def is_command(action):
    return type(action).__name__ == "_SubParsersAction"


def examples():
    """Every example without its remark, and without what stands before ``streammem``."""
    found = []
    for _, parser in commands_of(build_parser()):
        for line in (parser.epilog or "").splitlines():
            if "streammem " in line:
                found.append(REMARK.sub("", line[line.index("streammem ") :]).strip())
    return list(dict.fromkeys(found))


def test_every_command_has_an_example_and_each_is_typed_rightly():
    lines = examples()
    assert len(lines) > 50
    for line in lines:
        build_parser().parse_args(shlex.split(line)[1:])  # it ends with code 2 where it is wrong


@pytest.mark.heavy
def test_every_example_works_or_says_in_one_line_why_not(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    record(tmp_path / "holiday.mp4")
    for copy in ("films/a.mp4", "talk.mp4", "kitchen.mp4"):
        shutil.copy("holiday.mp4", copy)
    recorded = ("--recorded", "2026-05-03T16:41")
    assert run("caption", "holiday.mp4", "--memory", "door", *recorded)[0] == 0
    shutil.copytree("door", "day")
    Image.new("RGB", (64, 64), "red").save("anna.jpg")
    (tmp_path / "coffee.txt").write_text("a kettle on a stove\na cup of coffee\n")
    failed = {}
    for line in examples():
        if NOT_RUN.search(line):
            continue
        code, _, told = run(*shlex.split(line)[1:])
        assert code in (0, 1, 2) and "Traceback" not in told, (line, told)
        if code:
            failed[line] = told.strip().splitlines()[-1]
    away = ("camera/1", "webcam:", "screen:", "ollama:", "localhost", "qwen3-vl-4b", "spoken")
    away += ("--start 1:30", "--at 0:12:03", '"my cup"')  # the film is short and shows no cup
    wrong = {line: why for line, why in failed.items() if not any(name in line for name in away)}
    assert wrong == {}
