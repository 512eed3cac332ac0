"""Of config.json, which may come from anywhere: what cannot be meant is told, with its setting."""

import dataclasses
import json

import pytest

from streammem.errors import CheckpointError
from streammem.models.checkpoint import FORMAT
from streammem.models.checkpoint_config import MAX_CONFIG_BYTES, MAX_LAYERS, read_config
from streammem.models.tiny.bridge import BridgeConfig
from streammem.perception.scenetilling import SceneTillingConfig

HUGE, NAN, INFINITE = 10**400, float("nan"), float("inf")
CERTAINTY = {"weights": [1, 2, 3, 4], "bias": 0}
CHOICE = {"weights": [1, 2], "candidates": 4}
CHANCE = {"location": 0, "growth": 1, "scale": 1}
EVIDENCE = {"cell_dim": 8, "words": 3, "rank": 4}
BRIDGE = dataclasses.asdict(BridgeConfig(patch_dim=8, patches=9, language_dim=32))
GOOD = {
    "format": FORMAT,
    "vision": "tiny",
    "language": "/models/a language model",
    "sentences": "hf:some/body",
    "bridge": BRIDGE,
    "key_dim": 16,
    "scenes": dataclasses.asdict(SceneTillingConfig()),
    "lora_scale": 2,
    "certainty": CERTAINTY | {"nouns": {"weights": [1, 2, 3, 4, 5], "bias": 0}},
    "choice": CHOICE,
    "chance": CHANCE,
    "evidence": EVIDENCE,
}


def read(folder, content):
    (folder / "config.json").write_text(content)
    return read_config(folder)


def test_a_good_configuration_is_read(tmp_path):
    config = read(tmp_path, json.dumps(GOOD))
    assert config.bridge == BridgeConfig(**BRIDGE) and config.scenes == SceneTillingConfig()
    assert (config.key_dim, config.lora_scale, config.evidence) == (16, 2.0, (8, 3, 4))
    assert config.reranker == ((1.0, 2.0), 4, 0.0) and config.null == (0.0, 1.0, 1.0)
    assert config.confidence_model.nouns.weights == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "5", '"format"', "{}", '{"format": 1}', '{"format": null}'),
        *("[" * 100_000, '{"a":' * 50_000, '{"format": ' + "9" * 5000 + "}"),
    ],
)
def test_what_is_no_configuration_is_told(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"config\.json: ") as error:
        read(tmp_path, content)
    assert len(str(error.value)) < 500


def test_bytes_that_are_no_text_and_a_missing_file_are_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        read_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        read_config(tmp_path)


def test_a_huge_configuration_is_not_read(tmp_path):
    with pytest.raises(CheckpointError, match="too large"):
        read(tmp_path, " " * (MAX_CONFIG_BYTES + 1))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"format": 2}, "format 2, this version reads 1; update streammem"),
        ({"format": [[0] * 9999]}, "format .*, this version reads 1"),
        ({"vision": ...}, "'vision'"),
        ({"vision": 5}, "vision: 5 is no str"),
        ({"vision": ""}, "vision: '' is no name"),
        ({"language": "a\nb"}, "language: .* is no name"),
        ({"language": "\ud800"}, "language: .* is no name"),
        ({"sentences": "a" * 9999}, "sentences: .* is no name"),
        ({"bridge": ...}, "'bridge'"),
        ({"bridge": []}, r"bridge: \[\] is no table"),
        ({"bridge": {}}, "patch_dim"),
        ({"bridge": BRIDGE | {"colour": 1}}, "bridge: no setting 'colour'"),
        ({"bridge": BRIDGE | {"dim": "wide"}}, "bridge.dim: 'wide' is no int"),
        ({"bridge": BRIDGE | {"dim": -1}}, "bridge.dim: -1 is not in"),
        ({"bridge": BRIDGE | {"dim": HUGE}}, "bridge.dim: 1000.* is not in"),
        ({"bridge": BRIDGE | {"dim": 384.0}}, "bridge.dim: 384.0 is no int"),
        ({"bridge": BRIDGE | {"heads": 0}}, "bridge.heads: 0 is not in"),
        ({"bridge": BRIDGE | {"heads": True}}, "bridge.heads: True is no int"),
        ({"bridge": BRIDGE | {"heads": 7}}, "bridge.heads: 7 do not divide"),
        ({"bridge": BRIDGE | {"layers": 10**9}}, "bridge.layers: 1000000000 is not in"),
        ({"bridge": BRIDGE | {"layers": MAX_LAYERS + 1}}, "bridge.layers: 65 is not in"),
        ({"bridge": BRIDGE | {"memory_tokens": 1 << 30}}, "bridge.memory_tokens: .* is not in"),
        ({"bridge": BRIDGE | {"dropout": 1}}, "bridge.dropout: 1.0 is not in"),
        ({"bridge": BRIDGE | {"dropout": None}}, "bridge.dropout: None is no number"),
        ({"bridge": BRIDGE | {"language_norm": NAN}}, "bridge.language_norm: nan is not in"),
        ({"bridge": BRIDGE | {"language_norm": 0}}, "bridge.language_norm: 0.0 is not above 0"),
        ({"key_dim": "wide"}, "key_dim: 'wide' is no int"),
        ({"key_dim": True}, "key_dim: True is no int"),
        ({"key_dim": 1 << 40}, "key_dim: .* is not in"),
        ({"scenes": None}, "scenes: None is no table"),
        ({"scenes": {"floor": 99}}, "floor"),
        ({"scenes": {"flor": 1}}, "scenes: no setting 'flor'"),
        ({"scenes": {"floor": "deep"}}, "scenes.floor: 'deep' is no number"),
        ({"scenes": {"peak": NAN}}, "scenes.peak: nan is not in"),
        ({"scenes": {"min_frames": 2.5}}, "scenes.min_frames: 2.5 is no int"),
        ({"scenes": {"max_frames": HUGE}}, "scenes.max_frames: 1000.* is not in"),
        ({"lora_scale": ...}, "'lora_scale'"),
        ({"lora_scale": None}, "lora_scale: None is no number"),
        ({"lora_scale": "2"}, "lora_scale: '2' is no number"),
        ({"lora_scale": HUGE}, "lora_scale: 1000.* is not in"),
        ({"lora_scale": NAN}, "lora_scale: nan is not in"),
        ({"certainty": "abc"}, "certainty: 'abc' is no table"),
        ({"certainty": 5}, "certainty: 5 is no table"),
        ({"certainty": False}, "certainty: False is no table"),
        ({"certainty": {}}, "'weights'"),
        ({"certainty": {"weights": [1.0], "bias": 0.0}}, "certainty.weights: .* list of 4 numbers"),
        ({"certainty": CERTAINTY | {"weights": "1234"}}, "certainty.weights: .* list of 4"),
        (
            {"certainty": CERTAINTY | {"weights": [1, 2, 3, HUGE]}},
            "certainty.weights: 1000.* not in",
        ),
        ({"certainty": CERTAINTY | {"weights": [1, 2, 3, []]}}, "certainty.weights: .* no number"),
        ({"certainty": CERTAINTY | {"bias": NAN}}, "certainty.bias: nan is not in"),
        ({"certainty": CERTAINTY | {"bias": [0]}}, r"certainty.bias: \[0\] is no number"),
        ({"certainty": CERTAINTY | {"whole": 2}}, "certainty.whole: 2 is not in"),
        ({"certainty": CERTAINTY | {"least": NAN}}, "certainty.least: nan is not in"),
        ({"certainty": CERTAINTY | {"nouns": CERTAINTY}}, "certainty.nouns.weights: .* list of 5"),
        ({"certainty": CERTAINTY | {"nouns": {}}}, "'weights'"),
        ({"certainty": CERTAINTY | {"nouns": []}}, "certainty.nouns: .* is no table"),
        ({"choice": [1, 2]}, "choice: .* is no table"),
        ({"choice": CHOICE | {"weights": [1.0]}}, "choice.weights: .* list of 2 numbers"),
        ({"choice": CHOICE | {"weights": [1, INFINITE]}}, "choice.weights: inf is not in"),
        ({"choice": CHOICE | {"naming": "much"}}, "choice.naming: 'much' is no number"),
        ({"choice": CHOICE | {"candidates": 0}}, r"choice.candidates: 0 is not in \[1, 32\]"),
        ({"choice": CHOICE | {"candidates": 33}}, "choice.candidates: 33 is not in"),
        ({"choice": CHOICE | {"candidates": 2.5}}, "choice.candidates: 2.5 is no int"),
        ({"choice": CHOICE | {"candidates": True}}, "choice.candidates: True is no int"),
        ({"chance": []}, r"chance: \[\] is no table"),
        ({"chance": CHANCE | {"scale": 0}}, "chance.scale: 0.0 is not above 0"),
        ({"chance": CHANCE | {"scale": HUGE}}, "chance.scale: 1000.* is not in"),
        ({"chance": {"location": 0, "growth": 1}}, "scale"),
        ({"evidence": "x"}, "evidence: 'x' is no table"),
        ({"evidence": EVIDENCE | {"words": 0}}, r"evidence.words: 0 is not in \[1, 65536\]"),
        ({"evidence": EVIDENCE | {"words": 1 << 40}}, "evidence.words: .* is not in"),
        ({"evidence": EVIDENCE | {"words": "many"}}, "evidence.words: 'many' is no int"),
        ({"evidence": EVIDENCE | {"cell_dim": 9}}, r"evidence.cell_dim: 9 is not in \[1, 8\]"),
        ({"evidence": {"cell_dim": 8, "words": 3}}, "rank"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_told_with_its_setting(tmp_path, values, told):
    content = {key: value for key, value in (GOOD | values).items() if value is not ...}
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{told}") as error:
        read(tmp_path, json.dumps(content))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
