"""Law 10: what README tells people to type works, and what the other pages name is there."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.__main__ import BENCHMARKS
from streammem.cli import build_parser, main
from streammem.models.backbones.weights import is_pulled
from streammem.models.checkpoint import DEFAULT, PRESETS, backbones_of
from tests.video.clips import encode

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted(ROOT.glob("docs/**/*.md"))
GUIDE = [page for page in DOCS if page.parent.name == "guide"]
PAGES = [README, *DOCS, *sorted(ROOT.glob("streammem/weights/*/*.md"))]
CODE = ("streammem", "benchmarks", "configs", "tests", "docs")
SHELLS = ("", "console", "sh", "bash", "shell")
# Commands that need neither a video nor minutes.
CHEAP = {("info",), ("models",), ("models", "list"), ("--version",), ("--help",)}
# A source in an example: whatever it is called there, a small clip stands in for it.
SOURCES = re.compile(r"""(?<=")(?:(?:rtsp|https?)://[^"]+|[^"\s]+\.(?:mp4|mkv|mov|webm))(?=")""")

pytestmark = pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")


def blocks(text: str, *languages: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block for language, block in fenced if language in languages]


def commands(text: str) -> list[list[str]]:
    """The arguments of every line in shell blocks that calls streammem."""
    lines = "\n".join(blocks(text, *SHELLS)).replace("\\\n", " ").splitlines()
    typed = [line.strip().removeprefix("$ ") for line in lines]
    words = [shlex.split(line, comments=True) for line in typed if line.startswith("streammem ")]
    return [line[1:] for line in words]


def examples(text: str) -> list[str]:
    return [block for block in blocks(text, "python") if block.startswith("import streammem")]


README_TEXT = README.read_text() if README.exists() else ""


@pytest.mark.parametrize(
    "arguments", [c for page in PAGES for c in commands(page.read_text())], ids=" ".join
)
def test_every_command_is_understood(arguments, capsys):
    try:
        build_parser().parse_args(arguments)
    except SystemExit as done:  # argparse prints help and versions itself, with code 0
        assert done.code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [c for c in commands(README_TEXT) if tuple(c) in CHEAP], ids=" ".join
)
def test_every_cheap_command_runs(arguments, capsys):
    try:
        code = main(arguments)
    except SystemExit as done:
        code = done.code
    assert code == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("number", range(len(examples(README_TEXT))))
def test_every_python_example_runs(number, tmp_path, monkeypatch, capsys):
    missing = [name for name in backbones_of(PRESETS[DEFAULT]) if not is_pulled(name)]
    if missing:
        pytest.skip(f"weights are not here; run: streammem models pull {' '.join(missing)}")
    encode(tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    exec(SOURCES.sub("clip.mp4", examples(README_TEXT)[number]), {"__name__": "__main__"})
    assert capsys.readouterr().out


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_linked_file_and_named_benchmark_exists(page):
    text = page.read_text()
    linked = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [to for to in linked if "://" not in to and not (page.parent / to).exists()]
    named = set(re.findall(r"python -m benchmarks (\w+)", text)) - {"NAME"}
    assert (missing, named - BENCHMARKS.keys()) == ([], set())


def test_the_readme_is_short():
    assert len(README_TEXT.splitlines()) <= 120


@pytest.mark.parametrize("page", GUIDE, ids=name_of)
def test_a_page_of_the_guide_has_one_table_at_most(page):
    assert len(re.findall(r"^\|[-|]+\|$", page.read_text(), re.MULTILINE)) <= 1


def test_the_index_names_every_page_and_picture_is_shown_somewhere():
    index = ROOT / "docs" / "README.md"
    linked = set(re.findall(r"\]\(([^)\s]+)\)", index.read_text()))
    assert {str(page.relative_to(index.parent)) for page in DOCS if page != index} <= linked
    shown = {(page.parent / to).resolve() for page in PAGES for to in pictures(page)}
    assert set(ROOT.glob("docs/**/*.png")) <= shown


def pictures(page: Path) -> list[str]:
    return re.findall(r"!\[[^]]*\]\(([^)\s]+)\)", page.read_text())


def test_pages_that_code_names_exist():
    sources = [path for folder in CODE for path in (ROOT / folder).rglob("*.*")]
    texts = [path.read_text() for path in sources if path.suffix in (".py", ".toml", ".md")]
    named = {name for text in texts for name in re.findall(r"\bdocs/[\w/-]+\.md\b", text)}
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_commands_and_examples_are_found_in_a_readme():
    text = """
```console
$ streammem caption a.mp4 \\
    --format srt  # comment
[00:00.0-00:01.0] not a command
```
```sh
streammem info
make demo
```
```python
import streammem
streammem.load("a.mp4")
```
```python
other = 1
```
"""
    assert commands(text) == [["caption", "a.mp4", "--format", "srt"], ["info"]]
    (example,) = examples(text)
    assert SOURCES.sub("clip.mp4", example).endswith('load("clip.mp4")\n')


def test_benchmarks_are_listed_with_what_they_measure(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--help"])
    assert benchmarks.main() == 0
    told = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines()[2:])
    assert told.keys() == BENCHMARKS.keys()
    assert min(map(len, told.values())) > 20
    monkeypatch.setattr(sys, "argv", ["benchmarks", "sene"])
    assert benchmarks.main() == 2
    assert capsys.readouterr().err.startswith("sene: no such benchmark")
