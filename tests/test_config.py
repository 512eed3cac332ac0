from dataclasses import dataclass, field

import pytest

from streammem.config import MAX_BYTES, override, parse_assignments, read_toml
from streammem.engine.session_config import SessionConfig
from streammem.errors import ConfigError
from streammem.models.backbones.language import GenerationConfig
from streammem.perception.scenetilling import SceneTillingConfig


@dataclass(frozen=True)
class Inner:
    depth: float = 0.5
    name: str = "a"


@dataclass(frozen=True)
class Options:
    count: int = 3
    share: float = 0.1
    on: bool = False
    text: str | None = None
    size: int | None = None
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    names: tuple[str, ...] = ("a",)

    def __post_init__(self):
        if self.count < 0:
            raise ConfigError(f"count={self.count}: give a number >= 0")


def test_assignments_become_nested_tables_of_toml_values():
    texts = ["a=1", "b.c=0.5", "b.d=true", 'e="x y"', "f=plain words", "g=", "h=a=b"]
    assert parse_assignments(texts) == {
        "a": 1,
        "b": {"c": 0.5, "d": True},
        "e": "x y",
        "f": "plain words",
        "g": "",
        "h": "a=b",
    }
    assert parse_assignments(["a=1", "a=2"]) == {"a": 2}


@pytest.mark.parametrize("assignments", [["a"], ["=1"], ["a=1", "a.b=2"], ["a=1", "a.b.c=2"]])
def test_an_assignment_that_is_none_is_told_with_itself(assignments):
    with pytest.raises(ConfigError, match=f"--set {assignments[-1]}: "):
        parse_assignments(assignments)


def test_values_are_laid_over_and_the_rest_stays():
    options = override(Options(), {"count": 5, "share": 1, "inner": {"depth": 2}, "text": "t"})
    assert options == Options(count=5, share=1.0, inner=Inner(depth=2.0), text="t")
    assert type(options.share) is float and type(options.inner.depth) is float
    assert override(Options(), {}) == Options()


def test_a_list_is_laid_over_a_tuple():
    assert override(Options(), parse_assignments(['names=["b", "c"]'])).names == ("b", "c")


def test_a_table_makes_an_optional_group_from_its_defaults():
    assert override(Options(), {"maybe": {"name": "b"}}).maybe == Inner(name="b")
    given = Options(maybe=Inner(depth=9.0))
    assert override(given, {"maybe": {"name": "b"}}).maybe == Inner(9.0, "b")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"nothing": 1}, "nothing: no such option; known: count, inner"),
        ({"inner": {"nothing": 1}}, "inner.nothing: no such option; known: depth, name"),
        ({"count": "many"}, "count: 'many' is not of type int"),
        ({"count": 2.5}, "count: 2.5 is not of type int"),
        ({"count": True}, "count: True is not of type int"),
        ({"share": True}, "share: True is not of type float"),
        ({"share": "half"}, "share: 'half' is not of type float"),
        ({"on": 1}, "on: 1 is not of type bool"),
        ({"text": 5}, "text: 5 is not of type str"),
        ({"size": "big"}, "size: 'big' is not of type int"),
        ({"size": True}, "size: True is not of type int"),
        ({"names": "b"}, "names: 'b' is no list"),
        ({"inner": 5}, "inner: 5 is not of type Inner"),
        ({"maybe": "x"}, "maybe: 'x' is not of type Inner"),
        ({"count": {"a": 1}}, "count: takes a value, not a table"),
        ({"text": {"a": 1}}, "text: takes a value, not a table"),
        ({"count": -1}, "count=-1: give a number >= 0"),
    ],
)
def test_a_value_that_does_not_fit_names_its_option(values, named):
    with pytest.raises(ConfigError, match=named.replace("(", r"\(")):
        override(Options(), values, "")
    with pytest.raises(ConfigError, match=r"^(here: |count=-1)"):
        override(Options(), values, "here: ")


def test_an_optional_value_may_be_given_its_type():
    assert override(Options(), {"size": 4}).size == 4


def test_every_option_of_a_session_can_be_set():
    texts = ["passages=6", "context=now", "scenes.floor=1", "caption.top_p=0.5", "instruction=Say."]
    config = override(SessionConfig(), parse_assignments(texts), "--set ")
    assert config == SessionConfig(
        passages=6,
        context="now",
        scenes=SceneTillingConfig(floor=1.0),
        caption=GenerationConfig(top_p=0.5),
        instruction="Say.",
    )


def test_a_toml_file_is_read_as_utf_8(tmp_path):
    path = tmp_path / "options.toml"
    path.write_bytes('instruction = "Décris."\n[scenes]\nfloor = 0.5\n'.encode())
    assert read_toml(path) == {"instruction": "Décris.", "scenes": {"floor": 0.5}}
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Windows' editors write it
    assert read_toml(path) == {"instruction": "Décris.", "scenes": {"floor": 0.5}}


def test_a_file_that_is_no_configuration_is_told(tmp_path):
    path = tmp_path / "options.toml"
    with pytest.raises(ConfigError, match=r"options\.toml: cannot be read"):
        read_toml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)
    for content in (b"a = = 1", b"\xff\xfe", b"[a]\n[a]\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"options\.toml: not TOML"):
            read_toml(path)
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="too large"):
        read_toml(path)
