"""Options from files and from ``--set key=value``, laid over dataclasses of options."""

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from streammem.errors import ConfigError

T = TypeVar("T")
MAX_BYTES = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of options.

    Raises:
        ConfigError: missing, too large, or not TOML.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: too large for a configuration file")
        # Windows editors begin a file with a mark, which TOML does not know.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from error


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Turn ``a.b=value`` strings into nested tables; values are TOML, else plain text.

    Raises:
        ConfigError: no ``=`` in one of them.
    """
    tables: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {assignment}: give key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *parents, last = key.split(".")
        table = tables
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {assignment}: {parent} has a value already")
        table[last] = value
    return tables


def override(options: T, values: Mapping[str, Any], where: str = "") -> T:
    """Return a copy of a dataclass with values from nested tables, checked against its fields.

    Args:
        options: a dataclass instance; nested dataclasses are overridden field by field.
        values: by field name.
        where: names the origin in messages.

    Raises:
        ConfigError: an unknown field, a value of another type, or one that the dataclass refuses.
    """
    fields = {f.name: f for f in dataclasses.fields(options)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            known = ", ".join(sorted(fields))
            raise ConfigError(f"{where}{key}: no such option; known: {known}")
        current = getattr(options, key)
        if isinstance(value, Mapping):
            default = current if current is not None else _nested_default(options, key)
            if not dataclasses.is_dataclass(default):
                raise ConfigError(f"{where}{key}: takes a value, not a table")
            changes[key] = override(default, value, f"{where}{key}.")
        else:
            changes[key] = _checked(value, _kinds(options, key, current), f"{where}{key}")
    try:
        return dataclasses.replace(options, **changes)  # type: ignore[type-var]
    except TypeError as error:
        raise ConfigError(f"{where or 'options'}: {error}") from error


def check_choices(options: Any) -> None:
    """Refuse a field of a dataclass that is none of the choices of its ``Literal``.

    Raises:
        ConfigError: names the field and its choices.
    """
    for name, hint in typing.get_type_hints(type(options)).items():
        choices, value = typing.get_args(hint), getattr(options, name)
        if typing.get_origin(hint) is typing.Literal and value not in choices:
            raise ConfigError(f"{name}={value!r}: give one of {', '.join(choices)}")


def _kinds(options: Any, key: str, current: Any) -> tuple[type, ...]:
    """Return the types that a field takes: its value's, or those that its annotation names."""
    if current is not None:
        return (type(current),)
    hint = typing.get_type_hints(type(options))[key]
    return tuple(t for t in typing.get_args(hint) or (hint,) if isinstance(t, type))


def _checked(value: Any, kinds: tuple[type, ...], where: str) -> Any:
    if type(value) in kinds:
        return value
    if float in kinds and type(value) is int:
        return float(value)
    if tuple in kinds and type(value) is list:
        return tuple(value)
    if tuple in kinds:
        raise ConfigError(f'{where}: {value!r} is no list; write it as ["one", "other"]')
    names = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
    raise ConfigError(f"{where}: {value!r} is not of type {names}")


def _nested_default(options: Any, key: str) -> Any:
    """Build the dataclass that an optional field would hold."""
    hint = typing.get_type_hints(type(options))[key]
    for option in typing.get_args(hint):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option()
    return None
