"""A Llama's forward pass over a static key-value cache, for decoding on a CPU.

It takes the weights of a transformers model and computes the same function without the framework's
work at each step. It chooses no tokens (see ``sampling.py``) and knows no text.

Three routes. ``exact``: float32 throughout. ``half``: weights are kept as float16 and multiplied in
float32, which halves the bytes that each step reads; activations, norms, attention and the cache
stay float32, and so does a matrix that float16 cannot hold. ``bfloat16``: products of bfloat16, for
samples of a model that is being trained: arranged in a fifth of the time, and fast for many rows.

Where ``half`` runs too, ``exact`` lets it guess the next few tokens of a single row, and computes
the logits behind all of them in one pass: the weights are read once for several tokens.
"""

import copy
import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from streammem.errors import CheckpointError
from streammem.models.backbones.low_rank import LowRank, adapt, keeps_rows_apart
from streammem.models.backbones.products import (
    FUSE,
    Fuse,
    Linear,
    Route,
    gain_of,
    has_half,
    weight_of,
)
from streammem.models.once import Once, once

# Legend: B rows, T new columns, S columns of the cache, D width, H query heads, K key-value heads,
# G = H / K, E head width, V vocabulary.

ALIGNED = 16  # floats of a cache line
GRAIN = 32768  # values from which on torch divides an operation among threads
# Rows and columns of prompts that are compared with each alone: few and many rows, and products
# that torch divides among threads differently (from 22 rows of the default model on).
APART_SHAPES = ((3, 23), (8, 5))
MOST_GUESSED = 15  # tokens: most captions at once; 16 take 1.3 times as long to read as 8


@dataclass(frozen=True, slots=True, eq=False)
class LayerProducts:
    """The products of one layer; those of equal input are one, the norms' gains are in them.

    Attributes:
        gains: of the norms before ``qkv`` and before ``gate_up``, [D] each.
    """

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    gains: tuple[Tensor, Tensor]


def is_plain_llama(model: Any) -> bool:
    """Tell whether ``LlamaDecoder`` computes what this model does.

    Args:
        model: any language model, also inside a LoRA of peft.
    """
    llama = without_lora(model)
    if not isinstance(llama, LlamaForCausalLM):
        return False
    config, stack = llama.config, llama.model
    first = llama.get_input_embeddings().weight
    return (
        first.device.type == "cpu"
        and first.dtype == torch.float32
        and all(p.is_floating_point() for p in llama.parameters())  # not those of bitsandbytes
        and config.hidden_act == "silu"
        and not config.attention_bias
        and not config.mlp_bias
        and stack.rotary_emb.rope_type in ("default", "linear", "llama3")
    )


def without_lora(model: Any) -> Any:
    """Take a model out of its LoRA, if it is in one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def weights_version(model: Any) -> tuple[int, ...]:
    """Return a value that changes when a weight is changed in place, as an optimiser does it."""
    parameters = list(model.parameters())
    edits = sum(0 if p.is_inference() else p._version for p in parameters)
    return id(model), len(parameters), edits


class LlamaDecoder:
    """The weights of a Llama, arranged for decoding.

    Args:
        model: for which ``is_plain_llama`` holds; a LoRA is merged into the copy. ``exact`` lets
            the model's own matrices point into the new arrangement, so that memory holds one.
        route: see above; ``half`` needs ``has_half``.
        prefix: [P, D] embeddings that prompts usually begin with, computed once; P may be 0.
        few: [N] int64 tokens, in order, that ``Run`` may be held to; None for no such choice.
        release: take each layer out of the model once it is arranged, so that memory need not
            hold both; the model cannot be used afterwards.
    """

    def __init__(
        self,
        model: Any,
        route: Route,
        prefix: Tensor,
        *,
        few: Tensor | None = None,
        release: bool = False,
    ) -> None:
        llama = without_lora(model)
        config = llama.config
        self.route, self.prefix, self.few = route, prefix, few
        self.num_heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = llama.model.layers[0].self_attn.head_dim
        self.width, self._inside = config.hidden_size, config.intermediate_size
        self._rotary, self._embed = llama.model.rotary_emb, llama.get_input_embeddings()
        self._floor = math.sqrt(config.rms_norm_eps * config.hidden_size)
        # The model may be trained later, which tensors made in inference mode would prevent.
        with torch.inference_mode(False), torch.no_grad():
            if release:  # a part of a mapped file would keep all of it in memory
                self._embed.weight.data = self._embed.weight.data.clone()
            head, gain = llama.get_output_embeddings(), gain_of(llama.model.norm)
            fuse = FUSE[route]
            # The head first: its copy on the way is the largest.
            self._head, self._few_head = _heads(head, gain, route, few)
            if head.weight is not self._embed.weight:  # else the embeddings hold it anyway
                self._head()
            self._layers = []
            for number, block in enumerate(llama.model.layers):
                self._layers.append(_layer(block, fuse))
                if release:
                    llama.model.layers[number] = nn.Identity()
        self._prefix_columns: Tensor | None = None  # a run would hold this decoder, and be held
        self._apart: dict[int, bool] = {}  # what was measured, by number of threads
        guesses = route == "exact" and has_half()
        self.guesser = LlamaDecoder(model, "half", prefix, few=few) if guesses else None

    def adapted(self, changes: Mapping[str, LowRank]) -> "LlamaDecoder":
        """Return a decoder of these weights with low-rank changes, which shares the weights.

        Args:
            changes: by module, such as ``model.layers.0.self_attn.q_proj``.

        Raises:
            CheckpointError: a module that no layer has, or of another shape.
        """
        left = dict(changes)
        other = copy.copy(self)
        with torch.inference_mode(False), torch.no_grad():
            other._layers = [
                self._adapted_layer(layer, f"model.layers.{number}", left)
                for number, layer in enumerate(self._layers)
            ]
        if left:
            raise CheckpointError(f"lora: no layer has {min(left)}")
        other._prefix_columns, other._apart = None, {}
        other.guesser = self.guesser.adapted(changes) if self.guesser else None
        return other

    def _adapted_layer(
        self, layer: LayerProducts, name: str, changes: dict[str, LowRank]
    ) -> LayerProducts:
        """Change a layer; take its changes out of ``changes``."""
        heads, groups = self.num_heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {
            "self_attn.q_proj": (heads, self.width),
            "self_attn.k_proj": (groups, self.width),
            "self_attn.v_proj": (groups, self.width),
            "self_attn.o_proj": (self.width, heads),
            "mlp.gate_proj": (self._inside, self.width),
            "mlp.up_proj": (self._inside, self.width),
            "mlp.down_proj": (self.width, self._inside),
        }

        def changed(product: Linear, gain: Tensor | None, *modules: str) -> Linear:
            own = [changes.pop(f"{name}.{module}", None) for module in modules]
            for module, change in zip(modules, own, strict=True):
                if change and (len(change[1]), change[0].shape[1]) != shapes[module]:
                    raise CheckpointError(f"lora: {name}.{module} is not {shapes[module]}")
            heights = [shapes[module][0] for module in modules]
            return adapt(product, own, heights, gain, FUSE[self.route])

        before, between = layer.gains
        return LayerProducts(
            changed(layer.qkv, before, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            changed(layer.out, None, "self_attn.o_proj"),
            changed(layer.gate_up, between, "mlp.gate_proj", "mlp.up_proj"),
            changed(layer.down, None, "mlp.down_proj"),
            layer.gains,
        )

    def start(
        self,
        rows: Sequence[Tensor],
        room: int,
        ends: Collection[int] = (),
        replies: int = 1,
        *,
        held_to_few: bool = False,
    ) -> "Run":
        """Read prompts.

        Args:
            rows: [T_i, D] embeddings, T_i >= 1; shorter ones are padded.
            room: tokens that will be fed at most; the cache is allocated for them, once.
            ends: tokens behind which nothing is worth guessing.
            replies: ways in which each prompt is continued at most, see ``Run.branch``.
            held_to_few: only the logits of ``few`` are computed; without ``few``, all are.
        """
        shared = all(map(self._begins_with_prefix, rows))
        begin = len(self.prefix) if shared else 0
        size = max(len(row) for row in rows) + room
        run = Run(self, len(rows), size, ends, most_rows=len(rows) * replies)
        run.few = self.few if held_to_few else None
        if shared:
            run.begin_with(self._read_prefix())
        run.read([row[begin:] for row in rows])
        return run

    def are_apart(self, rows: Sequence[Tensor]) -> bool:
        """Tell whether prompts that are read together have the logits, to the bit, of each alone.

        Padding would move a row's columns, and so the order in which its attention is summed.
        """
        if len(rows) < 2:
            return True
        alike = len({(len(row), self._begins_with_prefix(row)) for row in rows}) == 1
        return alike and self.rows_apart

    @property
    def rows_apart(self) -> bool:
        """Whether a row's logits depend on no row beside it, with as many threads as there are."""
        threads = torch.get_num_threads()
        if threads not in self._apart:
            # Both heads are of equal width; the one that captions need is opened anyway.
            products = [self._head() if self.few is None else self._few_head()]
            for layer in self._layers:
                products += [layer.qkv, layer.out, layer.gate_up, layer.down]
            apart = all(map(keeps_rows_apart, products))
            self._apart[threads] = apart and self._measured_apart()
        return self._apart[threads]

    @torch.inference_mode()
    def _measured_apart(self) -> bool:
        """Compare the logits of rows that are read together with those of each alone.

        All layers have the same shapes, so the first and the head are enough. The products keep
        their rows apart by construction (``HalfLinear``); this is for what stands between them:
        attention, whose products are of the BLAS that torch was built with, and sums and functions
        of a row, whose vectors may end elsewhere with another number of rows or threads.
        """
        first = copy.copy(self)
        first._layers, first.guesser, first.prefix = self._layers[:1], None, self.prefix[:0]
        generator = torch.Generator().manual_seed(0)
        for count, length in APART_SHAPES:
            shape = count, length + 2
            tokens = torch.randint(self._embed.num_embeddings, shape, generator=generator)
            together = first._logits_along(tokens, length)
            for place in (0, count - 1):
                alone = first._logits_along(tokens[place : place + 1], length)
                if not torch.equal(alone[:, 0], together[:, place]):
                    return False
        return True

    def _logits_along(self, tokens: Tensor, length: int) -> Tensor:
        """Read prompts of the first tokens of [B, T], then feed the others: [T - length + 1, B, V].

        The logits are those behind the prompt and behind each token that was fed.
        """
        embedded = self._embed(tokens)
        run = self.start(list(embedded[:, :length]), tokens.shape[1] - length, held_to_few=True)
        logits = [run.logits]
        for column in tokens[:, length:].T:
            run.feed(column)
            logits.append(run.logits)
        return torch.stack(logits)

    def _begins_with_prefix(self, row: Tensor) -> bool:
        known = len(self.prefix)
        return 0 < known < len(row) and torch.equal(row[:known], self.prefix)

    def _read_prefix(self) -> Tensor:
        """Return the prefix's columns of a cache, of one row."""
        if self._prefix_columns is None:
            run = Run(self, 1, len(self.prefix))
            run.few = self.few  # its logits are not used: the smaller head will do
            run.read([self.prefix])
            self._prefix_columns = run.cache
        return self._prefix_columns

    def rotations(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the cosines and signed sines [S, H + 2K, E] that turn each head by its position.

        Those of the values are 1 and 0.

        Source: RoFormer (arXiv 2104.09864), section 3.2.2, as the model itself computes them.
        """
        cos, sin = self._rotary(self.prefix[None], torch.arange(size)[None])  # [1, S, E]
        low, high = sin[0].chunk(2, dim=-1)
        turned, kept = self.num_heads + self.kv_heads, self.kv_heads
        cos = cos[0, :, None].repeat(1, turned + kept, 1)
        sin = torch.cat([-low, high], -1)[:, None].repeat(1, turned + kept, 1)
        cos[:, turned:], sin[:, turned:] = 1, 0
        return cos, sin

    def embed(self, tokens: Tensor) -> Tensor:
        """Embed [B] tokens: [B, 1, D]."""
        return self._embed(tokens)[:, None]

    def logits(
        self, x: Tensor, run: "Run", places: Tensor, mask: Tensor | None, *, every: bool = False
    ) -> Tensor:
        """Run the stack over T new columns, whose keys and values it writes into the cache.

        For one token most of the time beyond the products goes into starting operations, so
        there are as few of them as possible.

        Args:
            x: [B, T, D].
            run: its ``length`` is the first new column.
            places: [B, T] positions.
            mask: [B, 1, G * T, S] bool, True where a column may be read; None reads all.
            every: of every new column instead of the last.

        Returns:
            [B, V], of the token after the last column, or [B * T, V]; V are ``run.few`` if any.
        """
        b, t, width = x.shape
        h, k, e = self.num_heads, self.kv_heads, self.head_dim
        # The norms divide by sqrt(sum(x^2) + D * eps): the length of a row with one more entry.
        x = F.pad(x.reshape(b * t, width), (0, 1), value=self._floor)
        cos, sin = run.turns(places)  # [B, T, H + 2K, E]
        slots = run.cache.narrow(3, run.length, t).unbind()
        keys, values = run.cache.narrow(3, 0, run.length + t).split(k, dim=2)
        for layer, slot, key, value in zip(
            self._layers, slots, keys.unbind(), values.unbind(), strict=True
        ):
            qkv = layer.qkv(_direction(x)).view(b, t, h + 2 * k, e)
            qkv = torch.addcmul(qkv * cos, qkv.roll(e // 2, -1), sin)
            slot.copy_(qkv[:, :, h:].transpose(1, 2))
            if t > 1 and not every and layer is self._layers[-1]:  # only the last column leaves it
                qkv, x = qkv[:, -1:], x.view(b, t, width + 1)[:, -1]
                mask, t = None if mask is None else mask[:, :, t - 1 :: t], 1
            # The G query heads of a key head stand as rows below each other: no key is repeated.
            q = qkv[:, :, :h].reshape(b, t, k, h // k, e)
            q = q.permute(0, 2, 3, 1, 4).reshape(b, k, h // k * t, e)
            a = _attention(q, key, value, mask)
            a = a.view(b, k, h // k, t, e).permute(0, 3, 1, 2, 4).reshape(b * t, h * e)
            x[:, :-1] += layer.out(a)
            gate, up = layer.gate_up(_direction(x)).chunk(2, -1)
            x[:, :-1] += layer.down(_silu(gate).mul_(up))
        head = self._head if run.few is None else self._few_head
        return head()(_direction(x))


class Run:
    """Prompts that are being continued: a cache of fixed size, and the logits of what comes next.

    Attributes:
        logits: [B, V] of the next token.
        length: columns filled, <= S.
        few: [V] int64, the tokens whose logits they are, in order; None for all tokens.
    """

    few: Tensor | None = None

    def __init__(
        self,
        decoder: LlamaDecoder,
        num_rows: int,
        size: int,
        ends: Collection[int] = (),
        most_rows: int = 0,
    ) -> None:
        self._decoder, self._ends, self._num_rows = decoder, ends, num_rows
        heads, most = 2 * decoder.kv_heads, max(num_rows, most_rows)
        # Rows that no reply has come to need no memory: the system gives a page when it is written.
        self._room = torch.empty(len(decoder._layers), most, heads, size, decoder.head_dim)
        self._cos, self._sin = decoder.rotations(size)
        self.length = 0
        self.logits = torch.empty(0)
        self._places = torch.zeros(num_rows, dtype=torch.long)  # [B] the next token's position
        self._readable: Tensor | None = None  # [B, S] bool; None where nothing is padded
        self._ahead: deque[tuple[int, Tensor]] = deque()  # guessed tokens, the logits behind each
        # Tokens to guess; fewer once guesses fail. Replies that part would make guesses vain.
        self._reach = MOST_GUESSED if most == 1 else 0

    @property
    def cache(self) -> Tensor:
        """[layers, B, 2K, S, E], keys before values: 8 * layers * K * E bytes a column."""
        return self._room[:, : self._num_rows]

    def begin_with(self, columns: Tensor) -> None:
        """Begin with columns [layers, 1, 2K, P, E] that another run of one row has filled."""
        self.length = columns.shape[3]
        self.cache[:, :, :, : self.length] = columns

    def turns(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return what rotates queries and keys, and leaves values, at places [B, T]."""
        return self._cos[places], self._sin[places]

    def read(self, rows: Sequence[Tensor]) -> None:
        """Read the (rest of the) prompts, [T_i, D] each, padded to end in the same column."""
        begin, longest = self.length, max(len(row) for row in rows)
        pads = torch.tensor([longest - len(row) for row in rows])
        x = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        columns = torch.arange(begin, begin + longest)  # [T]
        places = (columns - pads[:, None]).clamp_min(0)  # [B, T]
        causal = torch.arange(begin + longest) <= columns[:, None]  # [T, S]
        mask = causal.expand(len(rows), 1, -1, -1)
        if bool(pads.any()):
            every = torch.arange(self.cache.shape[3])
            self._readable = (every < begin) | (every >= begin + pads[:, None])
            # A padding column reads itself, so that its softmax is not over nothing.
            itself = torch.arange(begin + longest) == columns[:, None]
            mask = mask & self._readable[:, None, None, : begin + longest] | itself
        groups = self._decoder.num_heads // self._decoder.kv_heads
        self.logits = self._decoder.logits(x, self, places, mask.repeat(1, 1, groups, 1))
        self.length += longest
        self._places = places[:, -1] + 1

    def feed(self, tokens: Tensor) -> None:
        """Continue every row by a token, [B].

        Raises:
            IndexError: the cache is full.
        """
        if self.length == self._room.shape[3]:
            raise IndexError(f"the cache holds {self.length} columns, and all are filled")
        if not self._is_guessed(tokens):
            guessed = self._guess(tokens)
            if guessed:
                self._read_ahead([*tokens.tolist(), *guessed])
            else:
                mask = self._readable
                mask = None if mask is None else mask[:, None, None, : self.length + 1]
                x = self._decoder.embed(tokens)
                self.logits = self._decoder.logits(x, self, self._places[:, None], mask)
        self.length += 1
        self._places = self._places + 1

    def _is_guessed(self, tokens: Tensor) -> bool:
        """Take the logits that are known already, if these tokens were guessed."""
        if not self._ahead:
            return False
        token, logits = self._ahead.popleft()
        if token != int(tokens):
            # What stands in the columns of the wrong guesses is written over before it is read.
            self._ahead.clear()
            self._reach //= 2
            return False
        self.logits = logits
        if not self._ahead:
            self._reach = min(self._reach + 1, MOST_GUESSED)
        return True

    def _guess(self, tokens: Tensor) -> list[int]:
        """Return the tokens that probably follow the one that is fed to a single row."""
        guesser, guessed = self._decoder.guesser, list[int]()
        if guesser is None or len(tokens) > 1:
            return guessed
        begin, room = self.length, self.cache.shape[3] - self.length - 1
        for ahead in range(min(self._reach, room)):
            x, places = guesser.embed(tokens), self._places[:, None] + ahead
            tokens = guesser.logits(x, self, places, None).argmax(-1)
            tokens = tokens if self.few is None else self.few[tokens]
            guessed.append(int(tokens))
            self.length += 1
            if guessed[-1] in self._ends:
                break
        self.length = begin
        return guessed

    def _read_ahead(self, said: list[int]) -> None:
        """Compute the logits behind each of T tokens, over the columns that the guesses left."""
        count, begin = len(said), self.length
        x = self._decoder.embed(torch.tensor(said)).transpose(0, 1)  # [1, T, D]
        places = self._places[:, None] + torch.arange(count)
        causal = torch.arange(begin + count) <= begin + torch.arange(count)[:, None]  # [T, S]
        mask = causal.repeat(self._decoder.num_heads // self._decoder.kv_heads, 1)[None, None]
        logits = self._decoder.logits(x, self, places, mask, every=True)
        self.logits = logits[:1]
        self._ahead.extend(zip(said[1:], logits[1:].split(1), strict=True))

    def read_on(self, tokens: Tensor) -> Tensor:
        """Continue every row by T tokens that are known already, [B, T].

        Returns:
            [B, T, V] logits of what follows each of them.

        Raises:
            IndexError: the cache is full.
        """
        (rows, count), begin = tokens.shape, self.length
        if begin + count > self._room.shape[3]:
            raise IndexError(
                f"the cache holds {self._room.shape[3]} columns, and {begin} are filled"
            )
        x = self._decoder.embed(tokens.flatten()).view(rows, count, -1)
        places = self._places[:, None] + torch.arange(count)
        causal = torch.arange(begin + count) <= begin + torch.arange(count)[:, None]  # [T, S]
        mask = causal.expand(rows, 1, -1, -1)
        if self._readable is not None:
            mask = mask & self._readable[:, None, None, : begin + count]
        mask = mask.repeat(1, 1, self._decoder.num_heads // self._decoder.kv_heads, 1)
        logits = self._decoder.logits(x, self, places, mask, every=True).view(rows, count, -1)
        self._ahead.clear()
        self.length, self._places, self.logits = begin + count, places[:, -1] + 1, logits[:, -1]
        return logits

    def branch(self, continuations: Sequence[tuple[int, int]]) -> list[int]:
        """Continue rows in several ways, in one, or not at all.

        What is common to several replies is computed once: they are one row until they part.

        Args:
            continuations: a row and the token that follows it, each pair once.

        Returns:
            The row in which each continuation stands from now on.
        """
        parents, tokens, places = arranged(continuations)
        if parents != list(range(self._num_rows)):
            self.take(torch.tensor(parents))
        self.feed(torch.tensor(tokens))
        return places

    def take(self, rows: Tensor) -> None:
        """Go on with these rows, [N] indices in any order, also repeated."""
        self._ahead.clear()
        if len(rows) > self._room.shape[1]:
            self._room = self._room[:, rows]
        else:
            moved = (rows != torch.arange(len(rows))).nonzero()[:, 0]
            filled = self._room.narrow(3, 0, self.length)
            filled[:, moved] = filled[:, rows[moved]]
        self._num_rows = len(rows)
        self.logits, self._places = self.logits[rows], self._places[rows]
        self._readable = None if self._readable is None else self._readable[rows]


def arranged(continuations: Sequence[tuple[int, int]]) -> tuple[list[int], list[int], list[int]]:
    """Place continuations in rows so that the fewest columns have to be copied.

    Args:
        continuations: a row and the token that follows it, each pair once.

    Returns:
        Of each new row the row that it goes on from and its token; of each continuation its row.
    """
    count = len(continuations)
    parents, tokens = [-1] * count, [0] * count
    places: list[int] = []
    for row, _ in continuations:  # the first of a row stays where it is: its columns too
        stays = row < count and parents[row] < 0
        places.append(row if stays else -1)
        if stays:
            parents[row] = row
    free = iter([place for place in range(count) if parents[place] < 0])
    for number, (row, token) in enumerate(continuations):
        if places[number] < 0:
            places[number] = next(free)
            parents[places[number]] = row
        tokens[places[number]] = token
    return parents, tokens, places


def _attention(q: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend, so that a row's result does not depend on the thread that computes it.

    Each thread has a part of N * (S + E + 2) floats of one buffer, for N query rows or 32 of them,
    and the order in which MKL sums depends on where in a cache line that begins.
    """
    count = q.shape[2]
    spare = -count % ALIGNED if torch.get_num_threads() > 1 else 0
    if spare:
        q = F.pad(q, (0, 0, 0, spare))
        if mask is not None and mask.shape[2] > 1:
            mask = F.pad(mask, (0, 0, 0, spare), value=True)
    return F.scaled_dot_product_attention(q, key, value, mask)[:, :, :count]


def _silu(x: Tensor) -> Tensor:
    """Apply SiLU to rows [M, N], so that a row's result does not depend on the rows beside it.

    torch divides more than GRAIN values among its threads, also within a row, and computes what is
    left of a part beyond whole vectors by another exponential (2e-5 of a logit with 5 threads).
    """
    if x.numel() < GRAIN or torch.get_num_threads() == 1:
        return F.silu(x)
    return torch.cat([F.silu(rows) for rows in x.split(max(1, (GRAIN - 1) // x.shape[1]))])


def _direction(x: Tensor) -> Tensor:
    """Divide rows [M, D + 1] by their lengths, the last entry left out: [M, D]."""
    return x[:, :-1] / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _heads(
    head: Any, gain: Tensor, route: Route, few: Tensor | None
) -> tuple[Once[Linear], Once[Linear]]:
    """Lay the head out for all tokens and for a few, each when it is first asked for."""

    def open_all() -> Linear:
        return (lambda x: head(x * gain)) if route == "exact" else FUSE[route]([head], gain)

    def open_few() -> Linear:
        assert few is not None
        if route == "exact":  # products of fewer columns would round otherwise
            return lambda x: head(x * gain)[:, few]
        rows = nn.Linear(head.in_features, len(few), bias=head.bias is not None)
        rows.weight.data = weight_of(head)[few]
        if head.bias is not None:
            rows.bias.data = head.bias[few]
        return FUSE[route]([rows], gain)

    return once(open_all, "head of all tokens"), once(open_few, "head of captions")


def _layer(block: Any, fuse: Fuse) -> LayerProducts:
    attention, mlp = block.self_attn, block.mlp
    gains = gain_of(block.input_layernorm), gain_of(block.post_attention_layernorm)
    return LayerProducts(
        fuse([attention.q_proj, attention.k_proj, attention.v_proj], gains[0]),
        fuse([attention.o_proj], None),
        fuse([mlp.gate_proj, mlp.up_proj], gains[1]),
        fuse([mlp.down_proj], None),
        gains,
    )
