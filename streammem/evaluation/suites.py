"""The evaluation suites by name, as on the command line.

run_suite("captions", Path("flickr8k"), PictureModel(load("streammem-tiny")), options)
"""

from pathlib import Path
from typing import Any

from streammem.errors import BackboneError, ConfigError
from streammem.evaluation.answers import AnsweringModel, evaluate_answers
from streammem.evaluation.captions import CaptioningModel, evaluate_captions
from streammem.evaluation.datasets import EvaluationOptions
from streammem.evaluation.memory import MemoryModel, evaluate_memory
from streammem.evaluation.retrieval import KeyEncoder, evaluate_retrieval

# The protocol that the model must implement, and the function that evaluates it.
SUITES: dict[str, tuple[type, Any]] = {
    "answers": (AnsweringModel, evaluate_answers),
    "captions": (CaptioningModel, evaluate_captions),
    "memory": (MemoryModel, evaluate_memory),
    "retrieval": (KeyEncoder, evaluate_retrieval),
}


def run_suite(
    suite: str, folder: Path, model: object, options: EvaluationOptions
) -> dict[str, object]:
    """Evaluate a model with a suite.

    Args:
        suite: a key of ``SUITES``.
        folder: the suite's data; see ``read_photos``.
        model: implements the protocol in ``SUITES``.
        options: see ``EvaluationOptions``.

    Returns:
        An object for JSON: ``suite``, ``split``, ``photos``, the figures, ``standard_errors``,
        ``controls`` by name. Fractions are 0 to 1.

    Raises:
        ConfigError: an unknown suite, or predictions that cannot be written.
        BackboneError: the model does not implement it.
        DatasetError: the folder is malformed.
    """
    if suite not in SUITES:
        raise ConfigError(f"{suite}: no such suite; known: {', '.join(SUITES)}")
    needs, evaluate = SUITES[suite]
    if not isinstance(model, needs):
        raise BackboneError(f"{suite}: needs a {needs.__name__}, and this model is none")
    return evaluate(folder, model, options).to_json()
