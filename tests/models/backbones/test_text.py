import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from streammem.errors import BackboneError
from streammem.models.backbones.text import TEXT_DIM, SentenceEncoder

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "dog", "cat", "runs", "sleeps", "on", "grass", "the"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=TEXT_DIM,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    BertTokenizerFast(vocab={w: i for i, w in enumerate(WORDS)}).save_pretrained(folder)
    return folder


def test_rows_are_unit_means_over_real_tokens_in_the_given_order(folder):
    encoder = SentenceEncoder(folder)
    sentences = ["a dog runs on the grass", "cat", "", "the cat sleeps"] * 20  # over one batch
    rows = encoder.encode(sentences)
    assert rows.shape == (80, TEXT_DIM)
    assert torch.allclose(rows.norm(dim=-1), torch.ones(80))
    assert torch.allclose(rows[:4], rows[4:8], atol=1e-5)  # float32 in other batches
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = torch.tensor([[WORDS.index(w) for w in ("[CLS]", "the", "cat", "sleeps", "[SEP]")]])
    with torch.no_grad():
        mean = model(ids).last_hidden_state[0].mean(0)
    assert torch.allclose(rows[3], mean / mean.norm(), atol=1e-5)


def test_sentences_longer_than_the_model_reads_are_cut(folder):
    encoder = SentenceEncoder(folder)
    assert torch.allclose(
        encoder.encode(["dog " * 126]), encoder.encode(["dog " * 5000]), atol=1e-5
    )


def test_no_sentence_gives_no_row(folder):
    assert SentenceEncoder(folder).encode([]).shape == (0, TEXT_DIM)


def test_what_is_no_sentence_encoder_is_told(folder, tmp_path):
    with pytest.raises(BackboneError, match="not a usable sentence encoder") as missing:
        SentenceEncoder(tmp_path)
    assert "\n" not in str(missing.value)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(BackboneError, match="not a usable sentence encoder"):
        SentenceEncoder(tmp_path)


def test_word_pieces_lie_where_their_words_do_and_padding_changes_nothing(folder):
    encoder = SentenceEncoder(folder)
    long, short, empty = encoder.token_states(["a dog runs on the grass", "the cat", ""])
    assert [("the cat")[a:b] for a, b in short.spans] == ["the", "cat"]
    assert long.states.shape == (6, TEXT_DIM) and empty.states.shape == (0, TEXT_DIM)
    (alone,) = encoder.token_states(["the cat"])
    assert torch.allclose(alone.states, short.states, atol=1e-5)  # float32 in other batches
