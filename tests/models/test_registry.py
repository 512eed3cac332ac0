"""Every name of a model is one row's: generators are composed with the model that perceives."""

import sys
from types import ModuleType

import pytest

from streammem import load
from streammem.errors import ConfigError
from streammem.models import checkpoint
from streammem.models.backbones.language import GenerationConfig
from streammem.models.protocols import EvidenceItem, Reads, readable
from streammem.models.registry import GENERATORS, find_generator, open_generator
from streammem.models.vlm.server import Spend
from tests.tiny import tiny_model


class Stub:
    reads, batches, decoding = Reads(pictures=4), False, GenerationConfig()

    def __init__(self, name, device, options):
        self.name, self.device, self.options = name, device, options


def opened(name, *, device, options, spend=None):
    return Stub(name, device, options)


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    """Each row opens a stub, and the model that perceives is tiny."""
    for kind in GENERATORS:
        module, _, function = kind.opener.partition(":")
        stub = ModuleType(module)
        setattr(
            stub, function, lambda name, *, device, options, spend=None: Stub(name, device, options)
        )
        known = sys.modules.get(f"streammem.models.{module}")
        if known is None or not hasattr(known, function):
            monkeypatch.setitem(sys.modules, f"streammem.models.{module}", stub)
        else:
            monkeypatch.setattr(known, function, opened)
    monkeypatch.setattr(checkpoint, "load_own", lambda name="", device="cpu": tiny_model())


@pytest.mark.parametrize(
    ("name", "scheme", "rest", "options"),
    [
        ("ollama:qwen3-vl:4b", "ollama", "qwen3-vl:4b", {}),
        ("ollama:http://box:11434#gemma3", "ollama", "http://box:11434#gemma3", {}),
        ("openai:http://box:8000/v1#org/name", "openai", "http://box:8000/v1#org/name", {}),
        ("openai:https://a/v1?v=1#m?timeout_s=9", "openai", "https://a/v1?v=1#m", {"timeout_s": 9}),
        ("hf:org/name?a=0.5&b=sdpa", "hf", "org/name", {"a": 0.5, "b": "sdpa"}),
    ],
)
def test_a_name_is_split_into_kind_rest_and_options(name, scheme, rest, options):
    kind, found, given = find_generator(name)
    assert (kind.scheme, found, given) == (scheme, rest, options)


@pytest.mark.parametrize("name", ["streammem-tiny", "some/folder", "C:/models/x", "videollamb-7b"])
def test_other_names_are_no_generators(name):
    assert find_generator(name) is None
    with pytest.raises(ConfigError, match="ollama:NAME"):
        open_generator(name)


def test_a_generator_captions_and_answers_and_ours_does_the_rest():
    model, own = load("hf:some", device="cpu"), tiny_model()
    assert model.generator is model.answer_generator
    assert (model.generator.name, model.generator.device) == ("some", "cpu")
    assert model.fingerprint == own.fingerprint, "a memory is the same for any generator"
    assert model.session_options["min_confidence"] == 0.0


def test_captions_and_answers_may_come_from_two_generators():
    answering = load("any", answer_with="hf:b")
    assert answering.answer_generator.name == "b"
    assert answering.generator.reads.tokens, "our own captions"
    assert "min_confidence" not in answering.session_options, "fitted to our own captions"
    captioning = load("any", caption_with="hf:a")
    assert captioning.generator.name == "a"
    assert captioning.answer_generator.reads.tokens
    both = load("hf:x", caption_with="hf:a", answer_with="ollama:b")
    assert (both.generator.name, both.answer_generator.name) == ("a", "b")
    assert "answer" not in captioning.session_options
    own = load("any")
    with pytest.raises(ConfigError, match="--spend is for what is asked of a server"):
        load("any", answer_with="hf:b", spend=Spend())
    assert own.generator is own.answer_generator


def test_a_toml_file_names_a_generator_with_its_options(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text('generator = "hf:org/small?b=2"\nabout = "small"\n[options]\na = 1\n')
    assert load(path).generator.options == {"a": 1, "b": 2}
    path.write_text('generator = "who:is"\n')
    with pytest.raises(ConfigError, match=r"who:is.*hf:NAME"):
        load(path)
    path.write_text('generator = "hf:a"\nlicense = 1\n')
    with pytest.raises(ConfigError, match="license: no such key"):
        load(path)


def test_where_there_is_not_a_picture_for_each_the_weakest_items_keep_none():
    picture = object()
    items = [
        EvidenceItem(i, i, keyframes=(picture,), score=s) for i, s in enumerate((0.9, 0.1, 0.5))
    ]
    kept = [len(item.keyframes) for item in readable(items, Reads(pictures=2))]
    assert kept == [1, 0, 1], "the oldest is the strongest and stays"
