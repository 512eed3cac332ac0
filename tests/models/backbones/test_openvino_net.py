import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from streammem.errors import BackboneError
from streammem.models.backbones.efficientnet import (
    FLOAT_CONVS,
    EfficientNetEncoder,
    EfficientNetLite,
    SameConv,
    fold_published,
    input_ranges,
)
from tests.models.backbones.published import published_state

pytest.importorskip("openvino", reason="openvino is not installed")
RUNTIMES = ("torch", "openvino")
HEAD = "head.conv.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lite2")
    save_file(fold_published(published_state("lite2"), "lite2"), path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def encoders(folder):
    return {name: EfficientNetEncoder(folder, runtime=name) for name in RUNTIMES}


def pictures(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def test_both_runtimes_give_the_same_features(encoders):
    frames = pictures((224, 224), (90, 160), (1, 1))
    ours, reference = (encoders[name].encode(frames) for name in ("openvino", "torch"))
    assert 0.1 < reference.patches.std() < 10
    for features, expected in zip(ours, reference, strict=True):
        # float32 over some 60 convolutions, summed in another order
        assert (features - expected).abs().max() < 1e-4


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_batch_equals_its_frames_one_by_one_to_the_bit(encoders, runtime):
    frames = pictures((90, 160), (224, 224), (300, 200))
    together = encoders[runtime].encode(frames)
    for number, frame in enumerate(frames):
        alone = encoders[runtime].encode([frame])
        assert torch.equal(together.frame[number], alone.frame[0])
        assert torch.equal(together.patches[number], alone.patches[0])


def test_threads_that_encode_at_once_get_what_each_gets_alone(encoders):
    frames = pictures(*[(64, 64)] * 6)
    alone = [encoders["openvino"].encode([frame]).patches for frame in frames]
    with ThreadPoolExecutor(3) as pool:
        together = list(
            pool.map(lambda frame: encoders["openvino"].encode([frame]).patches, frames)
        )
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_eight_bits_stay_close(encoders, folder):
    (frame,) = pictures((7, 7))  # enlarged, so smooth
    features = EfficientNetEncoder(folder, runtime="openvino-int8").encode([frame])
    reference = encoders["torch"].encode([frame])
    assert not torch.equal(features.patches, reference.patches)
    assert F.cosine_similarity(features.patches, reference.patches, dim=-1).min() > 0.98


def test_eight_bits_know_what_follows_a_relu6_and_spare_the_first_convolutions():
    net = EfficientNetLite("lite0")
    net.load_state_dict(fold_published(published_state("lite0"), "lite0"))
    ranges = input_ranges(net.eval(), 224)
    convs = [(name, m) for name, m in net.named_modules() if isinstance(m, SameConv)]
    assert not any(module in ranges for _, module in convs[:FLOAT_CONVS])
    for name, module in convs[FLOAT_CONVS:]:
        low, high = ranges[module]
        if name.endswith((".depthwise", ".project")):
            assert (low, high) == (0, 6)
        else:
            assert low == pytest.approx(-high * 128 / 127) and high > 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_changes_are_added_to_the_parameters_in_the_folder(encoders, folder, runtime):
    published = load_file(folder / "model.safetensors")
    bias = "head.conv.bias"
    changes = {HEAD: -published[HEAD], bias: 2 - published[bias]}
    features = EfficientNetEncoder(folder, changes, runtime=runtime).encode(pictures((64, 64)))
    assert torch.allclose(features.frame, torch.tensor(2.0))
    before = encoders[runtime].encode(pictures((64, 64)))
    assert torch.equal(features.patches[..., 1280:], before.patches[..., 1280:])


@pytest.mark.parametrize(
    "changes", [{"head.weight": torch.zeros(1)}, {HEAD: torch.zeros(1280, 352)}]
)
def test_changes_of_another_encoder_are_refused(folder, changes):
    with pytest.raises(BackboneError, match=f"{next(iter(changes))}.*tuned for"):
        EfficientNetEncoder(folder, changes)


def test_without_openvino_torch_encodes(folder, encoders, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    frames = pictures((64, 64))
    features = EfficientNetEncoder(folder).encode(frames)
    assert torch.equal(features.patches, encoders["torch"].encode(frames).patches)
    with pytest.raises(BackboneError, match="pip install openvino"):
        EfficientNetEncoder(folder, runtime="openvino")


QUIET = """
import os, socket, sys, threading
def refuse(*arguments):
    os._exit(3)
socket.getaddrinfo = socket.socket.connect = refuse
from streammem.models.backbones.efficientnet import import_openvino
import_openvino().Core()
assert "openvino_telemetry" not in sys.modules
assert threading.active_count() == 1, threading.enumerate()
"""


def test_importing_openvino_tells_nobody_and_leaves_nothing(tmp_path):
    environment = os.environ | {"HOME": str(tmp_path)}
    assert (
        subprocess.run([sys.executable, "-c", QUIET], env=environment, check=False).returncode == 0
    )
    assert list(tmp_path.iterdir()) == []


INTERRUPTED = """
import signal, sys, threading
from streammem.models.backbones.efficientnet import EfficientNetLite
from streammem.models.backbones.efficientnet import OpenVinoNet

signal.signal(signal.SIGINT, lambda *_: print("interrupted"))
nets = [OpenVinoNet(EfficientNetLite("lite0"), 64)]
last = threading.Thread(target=nets.clear)  # another thread lets the last one go
last.start()
last.join(60)
signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.heavy
def test_a_signal_after_the_last_network_went_in_another_thread_is_handled():
    command = [sys.executable, "-X", "faulthandler", "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
