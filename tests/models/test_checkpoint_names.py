"""Of words.txt and lexicon.txt from anywhere: what is wrong is told, with its line."""

import pytest

from streammem.errors import CheckpointError
from streammem.models.checkpoint_names import (
    MAX_CLASSES,
    MAX_LIST_BYTES,
    MAX_NAME,
    lexicon_lines,
    read_lexicon,
    read_names,
)
from streammem.models.tiny.words import NameMeaning

WORDS = ("cup", "cutting board")


def test_names_are_read_in_their_order(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("cup\ncutting board\nTV\n" + "a" * MAX_NAME + "\n")
    assert read_names(path) == ["cup", "cutting board", "TV", "a" * MAX_NAME]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("cup\n\npan\n", "line 2: '' is no name"),
        ("\ncup\n", "line 1: '' is no name"),
        ("cup\n  \n", "line 2: '  ' is no name"),
        ("cup\n pan\n", "line 2: ' pan' is no name"),
        ("cup\npan\ncup\n", "line 3: 'cup' is listed twice"),
        ("cup\na\tb\n", "line 2: .* is no name"),
        ("cup\n\x1b[2J\n", "line 2: .* is no name"),
        ("a" * (MAX_NAME + 1), "line 1: .* is no name of 1 to 100 characters"),
        ("cup\n" * MAX_LIST_BYTES, "larger than"),
    ],
)
def test_names_that_cannot_be_meant_are_told_with_their_line(tmp_path, names, told):
    path = tmp_path / "words.txt"
    path.write_text(names)
    with pytest.raises(CheckpointError, match=rf"words\.txt.*{told}") as error:
        read_names(path)
    assert len(str(error.value)) < 500


def test_a_list_that_is_missing_or_no_text_is_told(tmp_path):
    path = tmp_path / "words.txt"
    with pytest.raises(CheckpointError, match=r"words\.txt: missing or corrupt"):
        read_names(path)
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(CheckpointError, match=r"words\.txt: missing or corrupt"):
        read_names(path)


def test_a_lexicon_is_read_as_it_is_written(tmp_path):
    lexicon = {
        "mug": NameMeaning("cup", []),
        "dog": NameMeaning("", [3, 4, 5, 6]),
        "board": NameMeaning("cutting board", [9, 0, 1, 7]),
    }
    path, lines = tmp_path / "lexicon.txt", lexicon_lines(lexicon)
    assert lines == ["mug\tcup\t", "dog\t\t3-6", "board\tcutting board\t9,0-1,7"]
    path.write_text("".join(f"{line}\n" for line in lines))
    assert read_lexicon(path, WORDS, 10) == lexicon


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "not a name, a word and classes"),
        ("dog", "not a name, a word and classes"),
        ("dog\t\t1\t2", "not a name, a word and classes"),
        ("\t\t1", "'' is no name"),
        ("mug\tcup\t", "'mug' is listed twice"),
        ("dog\tcat\t", "'cat' is none of the checkpoint's words"),
        ("dog\t\tx", "'x' is no class"),
        ("dog\t\t1,,2", "'' is no class"),
        ("dog\t\t-1", "'-1' is no class"),
        ("dog\t\t" + "9" * 5000, "is no class"),
        ("dog\t\t3-", "'3-' is no class"),
        ("dog\t\t1-2-3", "'1-2-3' is none of the 10 classes"),
        ("dog\t\t5-3", "'5-3' is none of the 10 classes"),
        ("dog\t\t10", "'10' is none of the 10 classes"),
        ("dog\t\t0-99999999", "is none of the 10 classes"),
        ("dog\t\t0-9,3", "a class is listed twice"),
    ],
)
def test_a_lexicon_that_cannot_be_meant_is_told_with_its_line(tmp_path, line, told):
    path = tmp_path / "lexicon.txt"
    path.write_text(f"mug\tcup\t\n{line}\n")
    with pytest.raises(CheckpointError, match=rf"lexicon\.txt, line 2: .*{told}") as error:
        read_lexicon(path, WORDS, 10)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("repeated", ["within a line", "over the lines"])
def test_a_few_bytes_make_no_millions_of_classes(tmp_path, repeated):
    every = f"0-{MAX_CLASSES - 1}"
    lines = {
        "within a line": ["mug\tcup\t", "dog\t\t" + ",".join([every] * 40)],
        "over the lines": [f"mug\tcup\t{every}", "dog\t\t3"],
    }
    path = tmp_path / "lexicon.txt"
    path.write_text("\n".join(lines[repeated]))
    with pytest.raises(CheckpointError, match=r"line 2: the lexicon has more than 100000 classes"):
        read_lexicon(path, WORDS, 1 << 40)


def test_a_huge_lexicon_is_not_read(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text("\n" * (MAX_LIST_BYTES + 1))
    with pytest.raises(CheckpointError, match=r"lexicon\.txt: larger than"):
        read_lexicon(path, WORDS, 10)
