import dataclasses
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from streammem.errors import BackboneError, CheckpointError, ConfigError
from streammem.memory.retrieval import GumbelNull
from streammem.models import checkpoint
from streammem.models.backbones.language import CausalLanguageModel, GenerationConfig
from streammem.models.backbones.text import TEXT_DIM
from streammem.models.backbones.weights import SOURCES
from streammem.models.caption_scores import ConfidenceModel, NounModel, Reranker
from streammem.models.checkpoint import PRESETS, backbones_of, load_checkpoint, merge_lora, save
from streammem.models.protocols import EvidenceItem
from streammem.models.tiny.keys import EvidenceSizes, PictureEvidence, SentenceEvidence
from streammem.models.tiny.questions import QuestionHead
from streammem.models.tiny.words import NameMeaning, NamesOfKeys, WordsOfTokens
from tests.tiny import TinyVision, moving_square, tiny_language, tiny_model

LORA_SCALE = 0.5


def lora_of(language, rank=3):
    generator = torch.Generator().manual_seed(1)
    lora = {}
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.q_proj"
        out, inside = language.model.get_submodule(name).weight.shape
        lora[f"{name}.A"] = torch.randn(rank, inside, generator=generator)
        lora[f"{name}.B"] = torch.randn(out, rank, generator=generator)
    return lora


@pytest.fixture(scope="module")
def language_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    language = tiny_language()
    language.model.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def original():
    return tiny_model()


@pytest.fixture(scope="module")
def saved(original, language_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    write(original, folder, language_folder)
    return folder


def write(model, folder, language_folder, answers=None, *, lora=None):
    backbones = {"vision": "tiny", "language": str(language_folder), "sentences": "none"}
    lora = lora or lora_of(tiny_language())
    save(model, folder, backbones=backbones, lora=lora, lora_scale=LORA_SCALE, answers=answers)


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a good checkpoint, for the test to damage."""
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture(autouse=True)
def tiny_vision(monkeypatch):
    def opened(name, changes, device):
        made = TinyVision()
        made.device = device
        return made

    monkeypatch.setattr(checkpoint, "open_vision", opened)


def change_config(folder, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# -- what is loaded is what was saved --


def test_weights_of_gates_that_are_no_more_are_left_out(folder):
    """Checkpoints of older versions stay readable."""
    gone = {"bridge.initial": torch.zeros(4, 32), "bridge.remember.gate.weight": torch.zeros(2, 2)}
    change_tensors(folder, lambda tensors: tensors.update(gone))
    assert load_checkpoint(folder).token_shape == (4, 32)


def test_a_device_has_what_sees_frames_and_segments_and_the_rest_stays(
    original, saved, language_folder, tmp_path
):
    words = words_of(("cup", "pan"), [9.0, -9.0])
    names = NamesOfKeys(16, words.names, 8, {}).eval()
    named = dataclasses.replace(original, words=words, names=names)
    write(named, tmp_path / "named", language_folder)
    # A device of no values, which all machines have.
    model = load_checkpoint(tmp_path / "named", device="meta")
    parts = (model.center, *model.bridge.parameters(), *model.picture_key.parameters())
    assert {part.device.type for part in parts} == {model.vision.device} == {"meta"}
    stay = (
        *(model.background, *model.text_key.parameters(), *model.names.parameters()),
        *(*model.words.parameters(), *model.words.buffers()),
    )
    assert {part.device.type for part in stay} == {"cpu"}
    tokens = torch.rand(4, 32)
    assert model.likely_words(tokens, 1) == ["cup"]
    assert model.naming(tokens, ["A cup.", "A pan."]) == pytest.approx([1, -1], abs=1e-3)
    assert model.name_readout("a cup").odds(torch.rand(1, 16).numpy())
    assert model.most_together > 1 and load_checkpoint(saved).most_together == 1


def test_a_loaded_model_sees_remembers_and_says_what_the_saved_one_does(saved, original):
    model = load_checkpoint(saved)
    picture = moving_square("red", 3)
    ours, theirs = original.perceive(picture), model.perceive(picture)
    # 8-bit rows: an error of 1/254 of a row's largest value, over three layers
    assert abs(ours.key @ theirs.key - 1) < 1e-3
    assert (ours.embedding == theirs.embedding).all() and torch.equal(ours.patches, theirs.patches)
    tokens = original.encode_frames([ours.patches], [0.5])
    assert torch.allclose(model.encode_frames([theirs.patches], [0.5]), tokens, atol=0.02)
    assert model.scenes == original.scenes and model.bridge.config == original.bridge.config
    assert backbones_of(saved)[0] == "tiny"
    assert not any(m.training for m in (model.bridge, model.picture_key, model.text_key))


def test_every_value_is_within_half_a_step_of_its_row(saved, original):
    loaded = load_checkpoint(saved)
    for ours, theirs in zip(parts(original), parts(loaded), strict=True):
        for (name, before), after in zip(ours.items(), theirs.values(), strict=True):
            error = (before - after).abs()
            if before.ndim == 2 and before.numel() >= checkpoint.MIN_PACKED:
                step = before.abs().amax(1, keepdim=True) / 127 * (1 + 2**-8)  # bfloat16 scales
                assert (error <= step * 0.5 + 1e-9).all(), name
            else:
                assert (error <= before.abs() * 2**-11 + 1e-7).all(), name  # float16


def parts(model):
    return [m.state_dict() for m in (model.bridge, model.picture_key, model.text_key)]


@pytest.mark.parametrize("size", [1e-12, 1e-6, 3e-4, 1.0, 1e3])
def test_saving_what_was_loaded_changes_no_bit(original, language_folder, tmp_path, size):
    model = tiny_model(seed=1)
    # Rows of every size, a zero row among them: scales must not lose what float16 cannot hold.
    weight = model.picture_key.out[2].weight
    weight.mul_(size * torch.logspace(-3, 0, len(weight))[:, None])
    weight[5] = 0
    write(model, tmp_path / "first", language_folder)
    first = load_checkpoint(tmp_path / "first")
    write(first, tmp_path / "second", language_folder)
    one, two = (load_file(tmp_path / f / "model.safetensors") for f in ("first", "second"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    kept = first.picture_key.out[2].weight
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((kept - weight).abs() <= 0.51 * step).all()


@pytest.mark.parametrize("nouns", [None, NounModel((1.0, 2.0, 3.0, 4.0, 5.0), 0.5, 0.2, 0.3)])
def test_fits_of_confidence_and_choice_are_kept(original, language_folder, tmp_path, nouns):
    fitted = dataclasses.replace(
        original,
        confidence_model=ConfidenceModel((1.0, 2.0, 3.0, 4.0), -0.5, 0.1, 0.4, nouns),
        reranker=Reranker((1.0, 0.25), 6, 0.5),
        null=GumbelNull(-2.0, 0.5, 0.25),
    )
    write(fitted, tmp_path / "fitted", language_folder)
    kept = load_checkpoint(tmp_path / "fitted")
    assert (kept.confidence_model, kept.reranker) == (fitted.confidence_model, fitted.reranker)
    assert kept.null == fitted.null
    write(original, tmp_path / "plain", language_folder)
    plain = load_checkpoint(tmp_path / "plain")
    assert plain.confidence_model is None and plain.reranker is None


def test_the_evidence_of_words_is_kept_with_its_keys(original, language_folder, tmp_path):
    model = tiny_model(seed=1)
    torch.manual_seed(0)
    key_dim = model.background.shape[1]
    model.picture_key.evidence = PictureEvidence(key_dim, EvidenceSizes(8, 30, 4))
    model.text_key.evidence = SentenceEvidence(TEXT_DIM, key_dim, 30)
    write(model, tmp_path / "joined", language_folder)
    loaded = load_checkpoint(tmp_path / "joined")
    assert loaded.picture_key.evidence.sizes == (8, 30, 4)
    picture = moving_square("red", 3)
    assert loaded.perceive(picture).key @ model.perceive(picture).key > 1 - 1e-3
    sentence = torch.nn.functional.normalize(torch.randn(1, TEXT_DIM), dim=-1)
    assert (loaded.text_key(sentence) * model.text_key.eval()(sentence)).sum() > 1 - 1e-3
    assert model.fingerprint != original.fingerprint


def words_of(names, biases):
    """Name things by their biases alone, whatever the tokens."""
    words = WordsOfTokens(4, 32, names, hidden=3)
    torch.nn.init.zeros_(words.up.weight)
    words.up.bias.data = torch.tensor(biases)
    return words.eval()


def test_words_are_kept_with_their_names_and_named_likeliest_first(
    original, saved, language_folder, tmp_path
):
    tokens = torch.rand(4, 32)
    assert original.likely_words(tokens, 3) == []
    words = words_of(("cup", "cutting board", "pan"), [-50.0, 50.0, 0.0])
    write(dataclasses.replace(original, words=words), tmp_path / "named", language_folder)
    loaded = load_checkpoint(tmp_path / "named")
    assert loaded.likely_words(tokens, 2) == ["cutting board", "pan"]
    assert loaded.likely_words(tokens, 9, 0.4) == ["cutting board", "pan"]
    assert loaded.likely_words(tokens, 9) == ["cutting board", "pan", "cup"]
    assert loaded.likely_words(tokens[:0], 9) == []
    assert loaded.fingerprint == load_checkpoint(saved).fingerprint, "memories stay readable"
    write(loaded, tmp_path / "again", language_folder)
    assert load_checkpoint(tmp_path / "again").likely_words(tokens, 1) == ["cutting board"]
    assert not loaded.words.training, "dropout would name at random"
    (tmp_path / "named" / "words.txt").write_text("cup\n\npan\n")
    with pytest.raises(CheckpointError, match=r"words\.txt, line 2"):
        load_checkpoint(tmp_path / "named")
    (tmp_path / "named" / "words.txt").write_text("cup\npan\n")
    with pytest.raises(CheckpointError, match="words"):
        load_checkpoint(tmp_path / "named")
    (tmp_path / "named" / "words.txt").unlink()
    with pytest.raises(CheckpointError, match="words"):
        load_checkpoint(tmp_path / "named")


@pytest.mark.parametrize(
    "name", ["words.down.weight", "words.up.bias", "names.classes.bias", "names.words.weight"]
)
def test_weights_of_names_that_do_not_fit_are_told(original, language_folder, tmp_path, name):
    words = words_of(("cup", "pan"), [0.0, 0.0])
    names = NamesOfKeys(16, words.names, 8, {}).eval()
    write(dataclasses.replace(original, words=words, names=names), tmp_path, language_folder)
    for shape in ((), (9, 9), (2, 1, 1)):
        change_tensors(
            tmp_path, lambda tensors, shape=shape: tensors.update({name: torch.ones(shape)})
        )
        with pytest.raises(CheckpointError, match=name.partition(".")[2]):
            load_checkpoint(tmp_path)


LEXICON = {
    "dog": NameMeaning("", range(3, 7)),
    "puppy": NameMeaning("", (3, 4, 6)),
    "mug": NameMeaning("cup", ()),
    "pan": NameMeaning("pan", (0,)),
}


def test_names_that_are_read_off_keys_are_kept_with_their_lexicon(
    original, saved, language_folder, tmp_path
):
    assert original.name_readout("a cup") is None
    words = words_of(("cup", "cutting board", "pan"), [0.0, 0.0, 0.0])
    names = NamesOfKeys(16, words.names, 8, LEXICON).eval()
    named = dataclasses.replace(original, words=words, names=names)
    write(named, tmp_path / "named", language_folder)
    loaded, keys = load_checkpoint(tmp_path / "named"), torch.randn(3, 16).numpy()
    assert loaded.fingerprint == load_checkpoint(saved).fingerprint, "memories stay readable"
    asked = {
        "a cup": ([0], []), "mugs": ([0], []), "the cutting boards": ([1], []),
        "a dog": ([], [3, 4, 5, 6]), "puppies": ([], [3, 4, 6]), "a pan": ([2], [0]),
    }  # fmt: skip
    for text, (number, classes) in asked.items():
        found, before = loaded.name_readout(text), named.name_readout(text)
        assert found.chosen.tolist() == classes and (found.word is None) == (not number)
        if number:
            assert found.word[0] == pytest.approx(names.words.weight[number[0]].detach(), abs=0.01)
        assert found.odds(keys) == pytest.approx(before.odds(keys), abs=0.05)
    for text in ("a brown dog", "a dog and a cup", "a cat", "", "the"):
        assert loaded.name_readout(text) is None, "only of what names one thing and no more"
    write(loaded, tmp_path / "again", language_folder)
    assert load_checkpoint(tmp_path / "again").names.lexicon.keys() == LEXICON.keys()
    lexicon = tmp_path / "named" / "lexicon.txt"
    for broken in ("dog\t\t3-8\n", "dog\tcat\t\n", "dog 3\n", "dog\t\tx\n", "dog\t\t0-99999999\n"):
        lexicon.write_text(broken)
        with pytest.raises(CheckpointError, match="lexicon"):
            load_checkpoint(tmp_path / "named")
    lexicon.unlink()
    with pytest.raises(CheckpointError, match="lexicon"):
        load_checkpoint(tmp_path / "named")
    write(dataclasses.replace(loaded, names=None), tmp_path / "again", language_folder)
    assert load_checkpoint(tmp_path / "again").names is None
    assert not (tmp_path / "again" / "lexicon.txt").exists()


def test_captions_are_held_to_the_tokens_that_the_checkpoint_lists(
    original, saved, language_folder, tmp_path
):
    assert load_checkpoint(saved).language.caption_tokens is None
    tokens = torch.tensor([0, 2, 3, 30, 31, 40])
    held = dataclasses.replace(original, caption_tokens=tokens)
    write(held, tmp_path / "held", language_folder)
    loaded = load_checkpoint(tmp_path / "held")
    assert torch.equal(loaded.language.caption_tokens, tokens)
    item = EvidenceItem(0, 1, torch.randn(loaded.token_shape))
    prompt = loaded.caption_prompt(item)
    (((reply,),)) = [r for r in loaded.replies([prompt], loaded.decoding) if r]
    assert set(reply.ids) <= set(tokens.tolist())
    path = tmp_path / "held" / "model.safetensors"
    for wrong, said in ((torch.zeros(8), "no token"), (torch.full((200,), 255.0), "names token")):
        save_file(load_file(path) | {"caption_tokens": wrong.half()}, path)
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(tmp_path / "held").language  # noqa: B018


def test_names_of_keys_are_fitted_to_what_both_judges_tell():
    generator = torch.Generator().manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(400, 16, generator=generator), dim=-1)
    truth = torch.randn(16, 3 + 8, generator=generator)
    logits = keys @ truth + torch.randn(11, generator=generator)
    names = NamesOfKeys(
        16, ("cup", "board", "pan"), 8, LEXICON | {"cutlery": NameMeaning("cup", ())}
    )
    names.fit(keys, logits[:, :3], logits[:, 3:], ridge=1e-6)
    found = torch.cat([names.words(keys), names.classes(keys)], 1)
    torch.testing.assert_close(found, logits, atol=1e-3, rtol=1e-3)


def test_a_name_is_read_as_it_is_spelled_before_its_stem():
    lexicon = {
        "mop": NameMeaning("", (1,)),
        "moped": NameMeaning("", (2,)),
        "glass": NameMeaning("", (3,)),
        "sunglasses": NameMeaning("", (4,)),
        "glasses": NameMeaning("", (4,)),
    }
    names = NamesOfKeys(4, ("fish",), 8, lexicon)
    texts = ("a mop", "the moped", "a glass", "glasses", "fishes")
    read = {text: names.readout(text) for text in texts}
    chosen = {text: list(readout.chosen) for text, readout in read.items() if readout}
    assert chosen == {"a mop": [1], "the moped": [2], "a glass": [3], "glasses": [4], "fishes": []}
    assert names.readout("fishing") is None


@torch.inference_mode()
def test_words_depend_on_the_tokens_as_centred_and_scaled(original, language_folder, tmp_path):
    words = WordsOfTokens(4, 32, ("cup", "pan", "cat"), hidden=3).eval()
    words.center.copy_(torch.randn(32))
    words.scale.copy_(0.1 + torch.rand(32))
    write(dataclasses.replace(original, words=words), tmp_path / "named", language_folder)
    loaded, tokens = load_checkpoint(tmp_path / "named").words, torch.randn(2, 4, 32)
    scaled = ((tokens - words.center) / words.scale).flatten(1)
    hidden = torch.nn.functional.gelu(scaled @ words.down.weight.T + words.down.bias)
    wanted = hidden @ words.up.weight.T + words.up.bias
    error = (loaded(tokens) - wanted).abs().max()
    assert 10 * error < (loaded(tokens)[0] - loaded(tokens)[1]).abs().max()


def test_words_are_in_prompts_that_answer_and_in_no_others(original):
    tokens, words = torch.rand(4, 32), words_of(("cup", "pan"), [2.0, -9.0])
    named = dataclasses.replace(original, words=words)

    def text(prompt):
        return [part for part in prompt if isinstance(part, str)]

    item = EvidenceItem(1, 2, tokens, "A room.", speech="Hello.")
    assert text(named.answer_prompt([item], "What is it?"))[1:-1] == [" A room. (cup) “Hello.”\n"]
    assert text(original.answer_prompt([item], "What is it?"))[1:-1] == [" A room. “Hello.”\n"]
    blank = item._replace(tokens=None)
    assert "cup" not in "".join(text(named.answer_prompt([blank], "What is it?")))
    assert text(named.caption_prompt(item)) == text(original.caption_prompt(item))
    both = dataclasses.replace(named, open_answers=named.open_language)
    assert "cup" not in "".join(text(both.answer_prompt([item], "What is it?")))
    assert "cup" in "".join(text(both.answer_generator.answer_prompt([item], "What is it?")))


def test_answers_have_an_adapter_of_their_own_and_captions_stay_to_the_letter(
    original, language_folder, tmp_path
):
    plain, both = tmp_path / "plain", tmp_path / "both"
    write(original, plain, language_folder)
    answers = {key: -2 * value for key, value in lora_of(tiny_language()).items()}
    write(original, both, language_folder, answers)
    plain, both = load_checkpoint(plain), load_checkpoint(both)
    assert plain.answer_generator is plain
    answering = both.answer_generator
    assert answering is both.answer_generator
    assert answering.answer_generator is answering
    name = "model.layers.0.self_attn.q_proj"
    weight, own, other = (
        model.language.model.get_submodule(name).weight for model in (plain, both, answering)
    )
    assert torch.equal(weight, own)
    assert not torch.allclose(weight, other, atol=1e-3)
    assert both.fingerprint == plain.fingerprint
    assert answering.bridge is both.bridge


def test_answers_share_the_weights_of_captions_and_say_what_their_own_would(
    original, language_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("STREAMMEM_DECODING", "exact")
    answers = {key: -2 * value for key, value in lora_of(tiny_language()).items()}
    write(original, tmp_path / "both", language_folder, answers)
    both = load_checkpoint(tmp_path / "both")
    captions, answering = both.language.decoder(), both.answer_generator.language
    assert answering.decoder()._layers[0].down is captions._layers[0].down
    # A model whose only adapter is that of the answers.
    write(original, tmp_path / "own", language_folder, lora=answers)
    own = load_checkpoint(tmp_path / "own").language
    decoding = GenerationConfig(max_new_tokens=8)
    prompts = [own.chat([torch.randn(n, 32), "What is it?"]) for n in range(1, 9)]
    with torch.inference_mode():
        rows = [own.embed(prompt) for prompt in prompts]
        found, expected = (
            torch.stack([m.decoder().start([row], 1).logits[0] for row in rows])
            for m in (answering, own)
        )
    assert torch.allclose(found, expected, atol=1e-3)
    assert answering.generate(prompts, decoding) == own.generate(prompts, decoding)


def test_answers_that_would_change_more_than_layers_are_told(original, language_folder, tmp_path):
    answers = {
        "model.embed_tokens.A": torch.zeros(1, 32),
        "model.embed_tokens.B": torch.zeros(9, 1),
    }
    write(original, tmp_path, language_folder, answers)
    with pytest.raises(CheckpointError, match=r"answers\.model\.embed_tokens\.A: .* layers only"):
        load_checkpoint(tmp_path)


def test_a_question_head_is_kept_and_may_be_lacking(original, language_folder, tmp_path):
    head = QuestionHead()
    write(dataclasses.replace(original, questions=head), tmp_path / "reads", language_folder)
    read = load_checkpoint(tmp_path / "reads").questions
    for name, value in head.state_dict().items():
        step = value.abs().max() / 127
        assert (read.state_dict()[name] - value).abs().max() <= 0.51 * step
    write(original, tmp_path / "plain", language_folder)
    assert load_checkpoint(tmp_path / "plain").questions is None
    assert (
        load_checkpoint(tmp_path / "reads").fingerprint
        == load_checkpoint(tmp_path / "plain").fingerprint
    )


def test_a_checkpoint_is_small_and_readable_by_others(saved):
    tensors = load_file(saved / "model.safetensors")
    kinds = {value.dtype for value in tensors.values()}
    assert kinds == {torch.int8, torch.bfloat16, torch.float16}
    assert (saved / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert sorted(os.listdir(saved)) == ["config.json", "model.safetensors"]


def test_the_adapter_is_merged_into_the_language_model(saved, language_folder):
    plain, merged = CausalLanguageModel.open(language_folder), load_checkpoint(saved).language
    lora = lora_of(plain)
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.q_proj"
        before, after = (m.model.get_submodule(name).weight for m in (plain, merged))
        change = LORA_SCALE * lora[f"{name}.B"] @ lora[f"{name}.A"]
        assert torch.allclose(after, before + change, atol=0.02)  # float16


# -- the adapter --


def test_merging_adds_scale_times_b_a_and_nothing_else():
    language = tiny_language()
    before = {k: v.clone() for k, v in language.model.state_dict().items()}
    lora = lora_of(language)
    merge_lora(language.model, lora, LORA_SCALE)
    for name, value in language.model.state_dict().items():
        module = name.removesuffix(".weight")
        if f"{module}.A" in lora:
            expected = before[name] + LORA_SCALE * lora[f"{module}.B"] @ lora[f"{module}.A"]
            assert torch.allclose(value, expected, atol=1e-6)
        else:
            assert torch.equal(value, before[name])


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        ({"model.layers.9.q.A": (2, 32), "model.layers.9.q.B": (32, 2)}, "module model.layers.9.q"),
        ({"model.layers.0.A": (2, 32), "model.layers.0.B": (32, 2)}, "no module"),
        ({f"{Q}.A": (2, 32)}, "no pair"),
        ({f"{Q}.B": (32, 2)}, "no pair"),
        ({f"{Q}.A": (3, 32), f"{Q}.B": (32, 2)}, "no pair"),
        ({f"{Q}.A": (2, 16), f"{Q}.B": (32, 2)}, r"is \(32, 32\), not \(32, 16\)"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_told_and_changes_nothing(lora, told):
    language = tiny_language()
    before = {k: v.clone() for k, v in language.model.state_dict().items()}
    good = lora_of(language)
    bad = {key: torch.ones(shape) for key, shape in lora.items()}
    good = {k: v for k, v in good.items() if not k.startswith(Q)}
    with pytest.raises(CheckpointError, match=told):
        merge_lora(language.model, good | bad, 1.0)
    after = language.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


# -- names --


@pytest.mark.parametrize("name", ["streammem-huge", "", "/nowhere/at/all", "hf:x/y"])
def test_an_unknown_model_is_told_with_what_there_is(name):
    with pytest.raises(ConfigError, match="streammem-tiny, or a checkpoint folder"):
        load_checkpoint(name)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps"])
def test_a_device_that_is_not_here_is_told_before_anything_is_opened(device):
    with pytest.raises(ConfigError, match=f"{device}: no device here"):
        load_checkpoint("no such model either", device=device)


def test_the_default_preset_is_packaged():
    folder = PRESETS["streammem-tiny"]
    assert all(name in SOURCES for name in backbones_of(folder))


def test_missing_backbones_tell_the_command_that_fetches_them(folder, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("STREAMMEM_HOME", str(tmp_path / "empty"))
    change_config(folder, vision="efficientnet-lite2")
    with pytest.raises(BackboneError, match="run: streammem models pull efficientnet-lite2"):
        load_checkpoint(folder)
    for unknown in ("never heard of", "a" * 300):  # the latter is too long for a file's name
        change_config(folder, vision=unknown)
        with pytest.raises(BackboneError, match=f"{unknown}: unknown backbone"):
            load_checkpoint(folder)


def test_a_backbone_is_opened_only_when_it_is_needed(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("STREAMMEM_HOME", str(tmp_path / "empty"))
    change_config(folder, language="smollm2-135m-instruct", sentences="all-minilm-l6-v2")
    model = load_checkpoint(folder)
    with pytest.raises(BackboneError, match="models pull smollm2-135m-instruct"):
        model.language  # noqa: B018
    with pytest.raises(BackboneError, match="models pull all-minilm-l6-v2"):
        model.sentences  # noqa: B018


# -- damage --


@pytest.mark.parametrize("keep", [0, 4, 100, 3000])
def test_truncated_weights_are_told_in_one_line(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing or corrupt") as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_missing_weights_are_told(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing or corrupt"):
        load_checkpoint(folder)


def test_a_pickle_is_never_opened(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    torch.save({"center": Evil()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing or corrupt"):
        load_checkpoint(folder)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"patches": 16}, "reads .16, 8. patches, but tiny gives .9, 8."),
        ({"patch_dim": 9}, "patches, but tiny gives"),
        ({"dim": 64}, "do not fit the configuration"),
        ({"memory_tokens": 5}, "do not fit the configuration"),
        ({"layers": 2}, "do not fit the configuration"),
        ({"dim": 1 << 16, "heads": 1, "layers": 64}, "do not fit the configuration"),
    ],
)
def test_weights_of_other_sizes_are_told(folder, sizes, told):
    bridge = json.loads((folder / "config.json").read_text())["bridge"]
    change_config(folder, bridge=bridge | sizes)
    with pytest.raises(CheckpointError, match=told) as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_evidence_that_the_weights_lack_is_told(folder):
    change_config(folder, evidence={"cell_dim": 8, "words": 3, "rank": 4})
    with pytest.raises(CheckpointError, match="do not fit the configuration"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    ["center", "background", "bridge.queries", "picture_key.out.2.weight", "text_key.linear.bias"],
)
def test_a_missing_tensor_is_named(folder, name):
    def change(tensors):
        del tensors[name]
        tensors.pop(name + checkpoint.SCALE, None)

    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=name.partition(".")[2] or name):
        load_checkpoint(folder)


def test_a_tensor_too_many_is_named(folder):
    change_tensors(folder, lambda tensors: tensors.update({"bridge.extra": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="extra"):
        load_checkpoint(folder)


@pytest.mark.parametrize("shape", [(3,), (24, 1), ()])
def test_a_centre_of_another_shape_is_told(folder, shape):
    change_tensors(folder, lambda tensors: tensors.update(center=torch.zeros(shape)))
    with pytest.raises(CheckpointError, match="center is missing, or not of shape"):
        load_checkpoint(folder)


@pytest.mark.parametrize("scale", [torch.ones(3), torch.ones(()), None, "of a number"])
def test_scales_without_their_matrix_are_told(folder, scale):
    name = "picture_key.out.2.weight"

    def change(tensors):
        if scale is None:
            del tensors[name]
        elif scale == "of a number":
            tensors[name] = torch.ones(())
        else:
            tensors[name + checkpoint.SCALE] = scale

    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match="scales do not fit"):
        load_checkpoint(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["background", "picture_key.out.2.weight", "lora.{}.A"])
def test_a_weight_that_is_no_finite_number_is_told_with_its_tensor(folder, name, value):
    name = name.format("model.layers.0.self_attn.q_proj")

    def change(tensors):
        """Change one value, of matrices with a scale a row the scale."""
        stored = tensors.get(f"{name}{checkpoint.SCALE}", tensors[name])
        stored.view(-1)[-1] = value

    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: {name} has weights"):
        load_checkpoint(folder)


def test_an_empty_tensor_is_read(folder):
    change_tensors(folder, lambda tensors: tensors.update({"lora.none": torch.zeros(0, 3)}))
    assert checkpoint.read_tensors(folder)["lora.none"].shape == (0, 3)


def test_a_language_model_of_another_width_is_told_when_it_is_opened(folder):
    bridge = json.loads((folder / "config.json").read_text())["bridge"]
    wide = tiny_model()
    wide.bridge.project = torch.nn.Linear(32, 48)
    change_config(folder, bridge=bridge | {"language_dim": 48})

    def change(tensors):
        for key in [k for k in tensors if k.startswith("bridge.project")]:
            del tensors[key]
        for key, value in wide.bridge.project.state_dict().items():
            tensors[f"bridge.project.{key}"] = value.detach()

    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=r"of width 48, but that of .* is 32"):
        load_checkpoint(folder).language  # noqa: B018


def test_a_failing_save_keeps_the_old_checkpoint(folder, language_folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(tensors, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tiny_model(seed=5), folder, language_folder)
    for name, content in before.items():
        assert (folder / name).read_bytes() == content


def test_its_language_model_is_written_for_a_server_with_what_was_learned(saved, tmp_path):
    checkpoint.export_language(saved, tmp_path / "spoken")
    own, spoken = load_checkpoint(saved).language, CausalLanguageModel.open(tmp_path / "spoken")
    for name, weight in own.model.state_dict().items():
        assert torch.equal(weight, spoken.model.state_dict()[name]), name
    config = json.loads((tmp_path / "spoken/generation_config.json").read_text())
    assert config["eos_token_id"] == sorted(own.stop_ids)
    assert not {"repetition_penalty", "temperature", "top_p"} & config.keys()
    assert spoken.ids("Hello there") == own.ids("Hello there")
    with pytest.raises(ConfigError, match="is there already; give a new folder"):
        checkpoint.export_language(saved, tmp_path / "spoken")


def test_prompts_are_embedded_without_the_layers(saved):
    whole, only = load_checkpoint(saved).language, checkpoint.open_embeddings(saved)
    prompt = ["Hello ", torch.ones(2, 32), "there"]
    assert torch.equal(whole.embed(whole.chat(prompt)), only.embed(only.chat(prompt)))
    assert only.stop_ids == whole.stop_ids
    assert not any(".layers." in name for name, _ in only.model.named_parameters())
