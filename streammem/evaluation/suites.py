"""The evaluation suites by name, as the command line offers them."""

from pathlib import Path
from typing import Any

from streammem.errors import BackboneError, ConfigError
from streammem.evaluation.answers import evaluate_answers
from streammem.evaluation.asking import Answering
from streammem.evaluation.captions import Captioner, evaluate_captions
from streammem.evaluation.datasets import Options
from streammem.evaluation.memory import Rememberer, evaluate_memory
from streammem.evaluation.retrieval import KeyEncoder, evaluate_retrieval

# What the model must offer, and what evaluates it.
SUITES: dict[str, tuple[type, Any]] = {
    "answers": (Answering, evaluate_answers),
    "captions": (Captioner, evaluate_captions),
    "memory": (Rememberer, evaluate_memory),
    "retrieval": (KeyEncoder, evaluate_retrieval),
}


def run(suite: str, folder: Path, model: object, options: Options) -> dict[str, object]:
    """Evaluate a model with a suite.

    Args:
        suite: a key of ``SUITES``.
        folder: the suite's data; see ``read_photos``.
        model: offers ``Answering``, ``Captioner``, ``KeyEncoder`` or ``Rememberer``, whichever
            the suite needs.
        options: see ``Options``.

    Returns:
        An object for JSON: ``suite``, ``split``, ``photos``, the figures, ``standard_errors``,
        ``controls`` by name. Fractions are 0 to 1.

    Raises:
        ConfigError: an unknown suite, or predictions that cannot be written.
        BackboneError: the model cannot do what the suite needs.
        DatasetError: the folder is malformed.
    """
    if suite not in SUITES:
        raise ConfigError(f"{suite}: no such suite; known: {', '.join(SUITES)}")
    needs, evaluate = SUITES[suite]
    if not isinstance(model, needs):
        raise BackboneError(f"{suite}: needs a {needs.__name__}, and this model is none")
    return evaluate(folder, model, options).to_json()
