"""One timeline of each source: where a live one goes on, and how old memories are mended."""

import json
import os
import signal
import sqlite3

import pytest

from streammem.memory import database
from streammem.memory.entry import Sureness
from streammem.memory.folder import DATABASE, FORMAT, HEADER
from streammem.memory.store import Store
from streammem.memory.timeline import offset_after
from streammem.memory.upkeep import verify
from streammem.types import Note
from tests.memory.entries import DIM, TOKENS, make

NOON = 1_777_809_600.0
CAMERA = "rtsp://camera/1"


def newest(**changes):
    return make(0, **{"start": 50.0, "end": 60.0, "wall_start": NOON + 50, **changes})


@pytest.mark.parametrize(
    ("row", "time", "wall_zero", "offset"),
    [
        (None, 0.0, NOON, 0.0),
        (newest(), 0.0, NOON + 600, 600.0),  # the gap is as long as it was
        (newest(), 2.0, NOON + 600, 600.0),  # whatever the first frame's time
        (newest(), 0.0, NOON - 3600, 60.0),  # the clock was set back
        (newest(), 0.0, None, 60.0),
        (newest(), 2.0, None, 58.0),
        (newest(wall_start=None), 0.0, NOON + 600, 60.0),
    ],
)
def test_a_live_source_goes_on_by_the_wall_clock_or_directly(row, time, wall_zero, offset):
    assert offset_after(row, time, wall_zero) == offset


# -- memories of format 3 --


def of_format_3(path, *rows):
    """Write rows (source, start, end, Unix time or None) as format 3 kept them."""
    with Store.create(path, "tiny", key_dim=DIM, token_shape=TOKENS) as store:
        for segment, (source, start, end, wall) in enumerate(rows):
            notes = (Note(start, end, f"note {segment}"),)
            times = {"start": start, "end": end, "wall_start": wall}
            store.append(make(segment, source=source, notes=notes, **times), b"state")
    connection = sqlite3.connect(path / DATABASE)
    connection.execute("ALTER TABLE segments DROP COLUMN sureness")
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    header = json.loads((path / HEADER).read_text())
    (path / HEADER).write_text(json.dumps({**header, "format": 3}))
    return path


def spans(path, mode):
    with Store.open(path, "tiny", mode) as store:
        assert verify(store) == ()
        entries = list(store.export())
    assert all(note == Note(e.start, e.end, note.text) for e in entries for note in e.notes)
    return [(e.source, e.start, e.end, e.wall_start) for e in entries]


THREE_RUNS = (
    (CAMERA, 0.0, 10.0, NOON),
    (CAMERA, 10.0, 20.0, NOON + 10),
    ("film.mp4", 0.0, 5.0, None),
    (CAMERA, 0.0, 10.0, NOON + 600),  # the second run
    ("film.mp4", 5.0, 9.0, None),
    (CAMERA, 10.0, 12.0, NOON + 610),
    (CAMERA, 0.0, 10.0, NOON + 300),  # the third: the clock was set back
    ("film.mp4", 0.0, 5.0, None),  # watched once more
)
MENDED = [
    (CAMERA, 0.0, 10.0, NOON),
    (CAMERA, 10.0, 20.0, NOON + 10),
    ("film.mp4", 0.0, 5.0, None),
    (CAMERA, 600.0, 610.0, NOON + 600),
    ("film.mp4", 5.0, 9.0, None),
    (CAMERA, 610.0, 612.0, NOON + 610),
    (CAMERA, 612.0, 622.0, NOON + 300),
    ("film.mp4", 0.0, 5.0, None),
]


def test_an_old_memory_is_mended_by_its_writer_and_read_as_it_will_be(tmp_path):
    path = of_format_3(tmp_path / "a.mem", *THREE_RUNS)
    before = (path / DATABASE).read_bytes()
    assert spans(path, "r") == MENDED
    assert (path / DATABASE).read_bytes() == before
    assert spans(path, "rw") == MENDED
    with Store.open(path, "tiny", "r") as store:
        assert store.header.format == FORMAT
    for mode in ("rw", "r"):  # it is mended once
        assert spans(path, mode) == MENDED


def test_a_reader_of_an_old_memory_goes_on_reading_while_a_writer_upgrades_it(tmp_path):
    path = of_format_3(tmp_path / "a.mem", *THREE_RUNS)
    with Store.open(path, "tiny", "r") as reader:
        before = [row.start for row in reader.export()]
        with Store.open(path, "tiny") as writer:
            assert [row.start for row in reader.export()] == before
            assert [row.start for row in writer.export()] == before


@pytest.mark.parametrize(
    ("source", "walls", "starts"),
    [
        (CAMERA, (None, None), [0.0, 10.0]),  # directly behind
        (CAMERA, (NOON, None), [0.0, 10.0]),
        ("webcam:0", (None, None), [0.0, 10.0]),
        ("http://camera/mjpeg", (NOON, NOON + 50), [0.0, 50.0]),  # the wall clock went on
        ("day.mp4", (NOON, NOON), [0.0, 0.0]),  # with --recorded, twice
        ("day.mp4", (None, None), [0.0, 0.0]),
    ],
)
def test_only_live_sources_are_mended(tmp_path, source, walls, starts):
    rows = [(source, 0.0, 10.0, wall) for wall in walls]
    path = of_format_3(tmp_path / "a.mem", *rows)
    for mode in ("r", "rw"):
        assert [start for _, start, *_ in spans(path, mode)] == starts


def test_a_damaged_row_of_an_old_memory_moves_no_other(tmp_path):
    path = of_format_3(tmp_path / "a.mem", *THREE_RUNS)
    connection = sqlite3.connect(path / DATABASE)
    with connection:
        connection.execute('UPDATE segments SET "end" = 1e9 WHERE segment = 1')
    connection.close()
    for mode in ("r", "rw"):
        with Store.open(path, "tiny", mode) as store:
            (fault,) = verify(store)
            assert fault.segment == 1
            assert [store.read(segment).start for segment in (0, 3, 5)] == [0.0, 600.0, 610.0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_writer_that_is_killed_while_it_mends_leaves_the_old_memory_or_the_new_one(
    tmp_path, monkeypatch
):
    path = of_format_3(tmp_path / "a.mem", *THREE_RUNS)
    query, written = database.Database.query, []

    def killed(self, sql, *arguments):
        if sql == database.UPDATE:
            written.append(arguments)
            if len(written) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        return query(self, sql, *arguments)

    writer = os.fork()
    if not writer:
        monkeypatch.setattr(database.Database, "query", killed)
        try:
            Store.open(path, "tiny")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == -signal.SIGKILL
    assert spans(path, "r") == MENDED and spans(path, "rw") == MENDED


def test_a_caption_of_an_old_memory_has_no_sureness_and_a_new_one_has(tmp_path):
    path = of_format_3(tmp_path / "a.mem", *THREE_RUNS)
    with Store.open(path, "tiny") as store:
        assert {entry.sureness for entry in store.load_entries()} == {()}
        store.set_caption(3, "a dog", None, Sureness(0.25, True))
        assert verify(store) == () and store.read(3).sureness == (Sureness(0.25, True),)
