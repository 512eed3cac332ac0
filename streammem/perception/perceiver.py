"""What perception asks of a model: a frame becomes an embedding, a key and patches."""

from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from streammem.perception.scenetilling import SceneTillingConfig


class Perceived(NamedTuple):
    """What one frame gives to the stream.

    Attributes:
        embedding: [D] float32 numpy, centred; for SceneTilling.
        patches: [P, V] float16; for the bridge.
        key: [K] float32 numpy, unit; for the cache.
    """

    embedding: np.ndarray
    patches: Tensor
    key: np.ndarray


class Perceiver(Protocol):
    """Encodes one frame at a time; ``scenes`` are SceneTilling's options, fitted to it."""

    @property
    def scenes(self) -> SceneTillingConfig: ...

    def perceive(self, picture: np.ndarray) -> Perceived:
        """Encode a frame, [H, W, 3] uint8 RGB."""
        ...
