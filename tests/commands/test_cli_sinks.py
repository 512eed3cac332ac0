"""`memory export --to`: one memory or a folder of them, once, each failure named."""

import pytest

from streammem.memory.store import Store

pytest.importorskip("qdrant_client", reason="needs streammem[qdrant]")


def test_a_folder_of_memories_is_copied_once_and_what_fails_is_named(run, memories, tmp_path):
    (memories / "torn").mkdir()
    (memories / "torn" / "memory.json").write_text("{")
    to = ("--to", f"qdrant:{tmp_path / 'films'}")
    code, out, err = run("memory", "export", memories, *to)
    assert (code, out) == (1, "") and "torn: " in err
    assert "1 memory: 5 rows written, 0 were there, 0 removed" in err
    with Store.open(memories / "trips", None, "rw") as store:
        store.set_caption(2, "Another caption.", None)
    code, _, err = run("memory", "export", memories / "trips", *to)
    assert code == 0 and "1 memory: 1 row written, 4 were there, 0 removed" in err


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (("--to", "http://127.0.0.1/films"), "qdrant://"),
        (("--to", "qdrant:x", "-o", "x.jsonl"), "leave out -o"),
        (("--to", "qdrant:x", "--format", "srt"), "leave out -o"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, memories, more, wanted):
    code, out, err = run("memory", "export", memories / "trips", *more)
    assert (code, out) == (2, "") and wanted in err
