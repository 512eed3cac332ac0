"""Sentences without pictures: reading untrusted files, and their cache."""

import numpy as np
import pytest
import torch

from streammem.errors import DatasetError
from streammem.training import sentences
from streammem.training.sentences import embed_sentences, read_sentences
from tests.tiny import TinySentences


def written(tmp_path, content, name="told.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_line_is_a_sentence_kept_once_and_lines_without_words_are_none(tmp_path):
    path = written(tmp_path, "\ufeffa dog runs .\n\n-- 12 --\nA dog  runs.\r\nEin Käse liegt da")
    assert read_sentences(path) == ["A dog runs.", "Ein Käse liegt da."]


def test_a_column_of_a_table_is_read_as_it_is_worded(tmp_path):
    table = (
        'id,narration,noun\n1,open drawer,drawer\n2,"put down cup, slowly",cup\n3\n1,open drawer,x'
    )
    path = written(tmp_path, table, "log.csv")
    assert read_sentences(path, "narration") == ["Open drawer.", "Put down cup, slowly."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("A dog.\n" + "x" * 501, "line 2: a sentence has at most 500"),
        ("A dog.\nA\x1b[2Jcat.", "line 2: a sentence .* printable"),
        (b"A dog.\nA \xff cat.", "line 2: not UTF-8"),
        ("A dog.\n" + "x" * (1 << 17), "line 2: longer than 65536 bytes"),
        ("\n\n1 2 3\n", "no sentence"),
    ],
)
def test_a_line_that_cannot_be_a_sentence_is_named(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(DatasetError, match=message) as raised:
        read_sentences(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1,a", "line 1: no column 'narration'; there are: id, text"),
        ("", "no column 'narration'"),
        ('id,narration\n1,"' + ("x" * 60_000 + "\n") * 3, "line 4: not CSV"),
        ("id,narration\n1,open\x00door", "line 2: .*(printable|not CSV)"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, content, message):
    path = written(tmp_path, content, "log.csv")
    with pytest.raises(DatasetError, match=message):
        read_sentences(path, "narration")


def test_a_file_of_endless_sentences_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sentences, "MOST_SENTENCES", 3)
    path = written(tmp_path, "".join(f"Dog number {n}.\n" for n in range(9)))
    with pytest.raises(DatasetError, match="line 4: more than 3 sentences"):
        read_sentences(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere\.txt: cannot be read"):
        read_sentences(tmp_path / "nowhere.txt")


def test_a_killed_embedding_goes_on_and_a_finished_one_is_opened(tmp_path, monkeypatch):
    texts = [f"Dog number {n}." for n in range(7)]
    monkeypatch.setattr(sentences, "EMBEDDED_AT_ONCE", 3)
    encoded = []

    class Dying(TinySentences):
        def encode(self, batch):
            if len(encoded) == 6:
                raise KeyboardInterrupt
            encoded.extend(batch)
            return super().encode(batch)

    with pytest.raises(KeyboardInterrupt):
        embed_sentences(texts, Dying, "tiny", tmp_path)
    encoded.clear()
    made = embed_sentences(texts, Dying, "tiny", tmp_path)
    assert encoded == texts[6:]
    assert isinstance(made.embeddings, np.memmap)
    expected = TinySentences().encode(texts)
    # float16 on disk
    assert torch.allclose(torch.from_numpy(made.embeddings.astype(np.float32)), expected, atol=1e-3)
    embed_sentences(texts, lambda: pytest.fail("embedded again"), "tiny", tmp_path)
