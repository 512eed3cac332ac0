import json
from dataclasses import replace

import pytest

from streammem.errors import ConfigError
from streammem.output.render import to_line
from streammem.output.results import RotatedFile, Rotation
from streammem.types import Caption

CAPTION = Caption(1, 0.0, 2.0, "A red square moves.")


class Wall:
    seconds = 1_800_000_000.0

    def __call__(self):
        return self.seconds


def written(path):
    return sorted(p for p in path.parent.iterdir())


def test_a_file_that_has_grown_large_is_set_aside_and_nothing_is_lost(tmp_path):
    out = RotatedFile("jsonl", tmp_path / "a.jsonl", Rotation(size_bytes=200), Wall())
    for _ in range(10):
        out.write(CAPTION)
    out.close()
    lines = [json.loads(line) for path in written(tmp_path / "x") for line in path.open()]
    assert len(lines) == 10 and len(written(tmp_path / "x")) > 2
    assert all(path.stat().st_size < 200 + 120 for path in written(tmp_path / "x"))


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_every_file_is_valid_by_itself(tmp_path, form):
    wall = Wall()
    out = RotatedFile(form, tmp_path / f"a.{form}", Rotation(every_s=60), wall)
    for _ in range(4):
        out.write(CAPTION)
        wall.seconds += 61
    out.close()
    files = written(tmp_path / "x")
    assert len(files) == 4
    first = "1\n00:00:00,000" if form == "srt" else "WEBVTT\n\n00:00:00.000"
    assert all(path.read_text().startswith(first) for path in files)


def test_only_the_newest_files_are_kept(tmp_path):
    wall = Wall()
    out = RotatedFile("text", tmp_path / "a.txt", Rotation(every_s=1, keep=2), wall)
    for number in range(9):
        out.write(replace(CAPTION, text=str(number)))
        wall.seconds += 1
    out.close()
    assert [path.read_text().split()[-1] for path in written(tmp_path / "x")] == ["6", "7", "8"]


def test_a_file_is_set_aside_at_its_age_or_size_and_not_before(tmp_path):
    wall, line = Wall(), len(to_line(CAPTION)) + 1
    aged = RotatedFile("jsonl", tmp_path / "age.jsonl", Rotation(every_s=60), wall)
    large = RotatedFile("jsonl", tmp_path / "size.jsonl", Rotation(size_bytes=2 * line), wall)
    for after_s in (0, 59, 1):
        wall.seconds += after_s
        for out in (aged, large):
            out.write(CAPTION)
    for name in ("age", "size"):
        sizes = [path.stat().st_size for path in sorted(tmp_path.glob(f"{name}*"))]
        assert sizes == [2 * line, line]


def test_each_event_is_on_disk_at_once_with_all_that_is_known_of_it(tmp_path):
    path = tmp_path / "a.jsonl"
    out = RotatedFile("jsonl", path, Rotation(), Wall())
    out.write(CAPTION, {"wall_start": "then"})
    assert json.loads(path.read_text())["wall_start"] == "then"
    out.close()


def test_closing_again_changes_nothing_and_an_empty_file_is_not_set_aside(tmp_path):
    (tmp_path / "a.srt").touch()
    out = RotatedFile("srt", tmp_path / "a.srt", Rotation(), Wall())
    out.write(CAPTION)
    for _ in range(2):
        out.close()
    assert [path.name for path in written(tmp_path / "x")] == ["a.srt"]
    assert (tmp_path / "a.srt").stat().st_size


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        RotatedFile("text", tmp_path / "no" / "a.txt", Rotation(), Wall()).write(CAPTION)


def test_a_file_that_was_moved_away_is_made_anew_after_reopening(tmp_path):
    path = tmp_path / "a.jsonl"
    out = RotatedFile("jsonl", path, Rotation(), Wall())
    out.write(CAPTION)
    path.rename(tmp_path / "moved.jsonl")
    out.write(CAPTION)  # still the one that was moved
    out.reopen()
    out.write(CAPTION)
    out.close()
    assert len((tmp_path / "moved.jsonl").read_text().splitlines()) == 2
    assert len(path.read_text().splitlines()) == 1


def test_after_a_restart_lines_go_on_and_cues_begin_a_new_file(tmp_path):
    for form in ("jsonl", "text", "srt"):
        for _ in range(2):
            out = RotatedFile(form, tmp_path / f"a.{form}", Rotation(), Wall())
            out.write(CAPTION)
            out.close()
    for form in ("jsonl", "text"):
        assert len((tmp_path / f"a.{form}").read_text().splitlines()) == 2
    assert len(list(tmp_path.glob("a-*.srt"))) == 1 and (tmp_path / "a.srt").exists()


def test_a_run_without_events_leaves_a_valid_file(tmp_path):
    RotatedFile("vtt", tmp_path / "a.vtt", Rotation(), Wall()).close()
    assert (tmp_path / "a.vtt").read_text() == "WEBVTT\n\n"


@pytest.mark.parametrize("options", [{"size_bytes": 0}, {"every_s": 0.0}, {"keep": 0}])
def test_a_rotation_that_cannot_be_meant_is_refused(options):
    with pytest.raises(ConfigError):
        Rotation(**options)
