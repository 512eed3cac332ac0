import pickle
import re

import pytest
import torch

from streammem.errors import BackboneError, CheckpointError
from streammem.models.backbones.torch_files import misfits, read_torch

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}


@pytest.mark.parametrize(
    "whole",
    [
        STATE,
        {"model": STATE, "optimizer": {"lr": 1.0}, "config": {"run": "x"}, "epoch": 3},
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_tensors_are_read_alone_or_under_model(tmp_path, whole, old):
    path = tmp_path / "x.pth"
    torch.save(whole, path, _use_new_zipfile_serialization=not old)
    read = read_torch(path)
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[name], value) for name, value in STATE.items())


def test_a_file_that_could_run_code_does_not(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("boom").write_text, ("!",))

    path = tmp_path / "x.pth"
    for whole in (Bomb(), {"model": STATE, "config": Bomb()}):
        for write in (torch.save, lambda what, to: to.write_bytes(pickle.dumps(what, 2))):
            write(whole, path)
            with pytest.raises(CheckpointError, match="can run code"):
                read_torch(path)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(200), b"text"])
def test_a_corrupt_file_is_named(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        read_torch(path)


def test_a_file_without_tensors_or_no_file_is_named(tmp_path):
    path = tmp_path / "x.pth"
    for whole in ([1], {"model": 3}, {"a": "text"}):
        torch.save(whole, path)
        with pytest.raises(CheckpointError, match="no tensors by name"):
            read_torch(path)
    with pytest.raises(BackboneError, match=r"gone\.pth: no such file"):
        read_torch(tmp_path / "gone.pth")


def test_all_misfits_stand_in_one_line():
    found = {"a": (2,), "b": (3, 4), "buffer": (1,), "more": (1,)}
    text = misfits(found, {"a": (2,), "b": (4, 3), "c": ()}, re.compile("buffer"))
    assert text == "1 missing: c; 1 of another shape: b (3, 4) for (4, 3); 1 unknown: more"
    assert misfits({"a": (2,)}, {"a": (2,)}, re.compile("")) == ""
