"""Tiny models with random weights, made in memory: the same code paths as the large ones."""

import re
import zlib

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from streammem.models.backbones.language import CausalLanguageModel, GenerationConfig
from streammem.models.backbones.text import TEXT_DIM, TokenStates
from streammem.models.backbones.vision import VisionFeatures
from streammem.models.tiny.bridge import BridgeConfig, MemoryBridge
from streammem.models.tiny.keys import PictureKey, TextKey
from streammem.models.tiny.model import VideoModel
from streammem.types import Frame

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: every text round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|pad|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    vocabulary |= {letter: i for i, letter in enumerate(alphabet, start=3)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers.decoders import ByteLevel

    tokenizer.decoder = ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT,
    )


def tiny_language(seed: int = 0) -> CausalLanguageModel:
    """A two-layer Llama of width 32."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return CausalLanguageModel(model, tokenizer)


class TinyVision:
    """Mean colours of a 3x3 grid through fixed random matrices; grey gives zeros."""

    frame_dim, patches, patch_dim = 24, 9, 8
    changes = {}  # noqa: RUF012, as the protocol names it

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self._frame = rng.standard_normal((27, self.frame_dim)).astype(np.float32)
        self._patch = rng.standard_normal((3, self.patch_dim)).astype(np.float32)

    def encode(self, frames) -> VisionFeatures:
        cells = np.stack([self._colours(frame) for frame in frames])  # [B, 9, 3]
        embeddings = cells.reshape(len(cells), 27) @ self._frame
        return VisionFeatures(torch.from_numpy(embeddings), torch.from_numpy(cells @ self._patch))

    def _colours(self, picture: np.ndarray) -> np.ndarray:
        rows = np.array_split(picture, 3, axis=0)
        cells = [cell for row in rows for cell in np.array_split(row, 3, axis=1)]
        means = [cell.reshape(-1, 3).mean(axis=0) for cell in cells]
        return (np.array(means, np.float32) - 127.5) / 127.5


class TinySentences:
    """A hashed bag of words as a unit vector."""

    def encode(self, sentences) -> torch.Tensor:
        rows = torch.zeros(len(sentences), TEXT_DIM)
        for row, sentence in zip(rows, sentences, strict=True):
            for word in ["", *sentence.lower().split()]:  # an empty sentence has a direction too
                row[zlib.crc32(word.encode("utf-8", "replace")) % TEXT_DIM] += 1
        return torch.nn.functional.normalize(rows, dim=-1)

    def token_states(self, sentences) -> list[TokenStates]:
        """A word is its own direction; its neighbours do not change it."""
        found = []
        for sentence in sentences:
            words = list(re.finditer(r"[\w:'-]+|[^\w\s]", sentence))
            states = [self.encode([word[0]])[0] for word in words]
            rows = torch.stack(states) if states else torch.zeros(0, TEXT_DIM)
            found.append(TokenStates(rows, tuple(word.span() for word in words)))
        return found


def talkative_language(seed: int = 0) -> CausalLanguageModel:
    """A tiny language model that says letters and spaces, other ones for other visual tokens."""
    language = tiny_language(seed)
    vocabulary = language.tokenizer.get_vocab()
    said = [vocabulary[sign] for sign in "abcdefghijklmnopqrstuvwxyzĠ"]
    model = language.model
    model.lm_head = torch.nn.Linear(32, len(vocabulary))
    torch.nn.init.normal_(model.lm_head.weight)
    torch.nn.init.constant_(model.lm_head.bias, -1000.0)
    model.lm_head.bias.data[said] = 0.0
    for parameter in model.model.layers.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    model.requires_grad_(False)
    return language


def tiny_model(seed: int = 0, **changes) -> VideoModel:
    """A whole model with random weights: keys of 16, a bridge of width 32 with 4 memory tokens."""
    torch.manual_seed(seed)
    vision = TinyVision()
    bridge = MemoryBridge(
        BridgeConfig(
            patch_dim=vision.patch_dim,
            patches=vision.patches,
            language_dim=32,
            language_norm=0.1,
            dim=32,
            memory_tokens=4,
            layers=1,
            heads=4,
        )
    )
    parts = {
        "name": "tiny",
        "vision": vision,
        "center": torch.zeros(vision.frame_dim),
        "bridge": bridge.eval().requires_grad_(False),
        "picture_key": PictureKey(vision.patch_dim, 16).eval().requires_grad_(False),
        "text_key": TextKey(TEXT_DIM, 16).eval().requires_grad_(False),
        "background": torch.nn.functional.normalize(torch.randn(32, 16), dim=-1),
        "open_sentences": TinySentences,
        "open_language": lambda: talkative_language(seed),
        "decoding": GenerationConfig(max_new_tokens=8),
    }
    return VideoModel(**(parts | changes))


COLOURS = {
    "red": (220, 30, 30),
    "blue": (30, 30, 220),
    "green": (30, 200, 40),
    "yellow": (220, 220, 30),
    "black": (10, 10, 10),
    "white": (240, 240, 240),
}


def film(*scenes: tuple[str, int], fps: float = 2.0, start: float = 0.0) -> list[Frame]:
    """Frames of (colour, number of frames) scenes, in each of which a small square moves."""
    colours = [colour for colour, length in scenes for _ in range(length)]
    return [
        Frame(moving_square(colour, number), start + number / fps, 1 / fps, number)
        for number, colour in enumerate(colours)
    ]


def moving_square(colour: str, number: int, width: int = 32, height: int = 24) -> np.ndarray:
    """A picture [H, W, 3] uint8 of one colour, with a square at one of 16 places."""
    pixels = np.tile(np.array(COLOURS[colour], np.uint8), (height, width, 1))
    left = number % 16 * width // 32
    pixels[height // 4 : height // 2, left : left + width // 4] = (128, 128, 255)
    return pixels
