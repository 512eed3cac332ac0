"""Laws of the messages that name a missing package: the command in them works where it is read."""

import sys

import pytest

from streammem import errors
from streammem.commands.options import require


@pytest.mark.parametrize("extra", ["serve", "ui", "mcp"])
def test_a_missing_extra_is_installed_from_the_clone_or_from_pypi(extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.setattr(errors, "CLONE", tmp_path)
    with pytest.raises(errors.BackboneError) as installed:
        require(extra, "fastapi")
    (tmp_path / "pyproject.toml").touch()
    with pytest.raises(errors.BackboneError) as cloned:
        require(extra, "fastapi")
    assert f"pip install 'streammem[{extra}]'" in str(installed.value)
    assert f"pip install -e '.[{extra}]'" in str(cloned.value)
