import json
import subprocess
import sys

import pytest

from streammem.errors import BackboneError, ConfigError
from streammem.evaluation.datasets import EvaluationOptions
from streammem.evaluation.suites import SUITES, run_suite

from .test_answers import Oracle as Answering
from .test_captions import Oracle as Captioner
from .test_memory import Oracle as Rememberer
from .test_retrieval import Oracle as KeyEncoder

MODELS = {
    "answers": Answering, "captions": Captioner, "memory": Rememberer, "retrieval": KeyEncoder,
}  # fmt: skip
FOLDERS = {
    "answers": ("farm_folder", 40),
    "memory": ("farm_folder", 40),
}  # composing a stream takes more photos than five


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_prints_one_object_and_nothing_on_stdout(suite, request, capsys):
    name, photos = FOLDERS.get(suite, ("photo_folder", 4))
    folder = request.getfixturevalue(name)
    report = run_suite(suite, folder, MODELS[suite](), EvaluationOptions(controls=True))
    assert (report["suite"], report["split"], report["photos"]) == (suite, "val", photos)
    json.dumps(report, allow_nan=False)
    assert capsys.readouterr().out == ""


def test_an_unknown_suite_and_a_model_that_cannot_are_clear_errors(photo_folder):
    with pytest.raises(
        ConfigError, match="no such suite; known: answers, captions, memory, retrieval"
    ):
        run_suite("songs", photo_folder, Captioner(), EvaluationOptions())
    with pytest.raises(BackboneError, match="retrieval: needs a KeyEncoder"):
        run_suite("retrieval", photo_folder, Captioner(), EvaluationOptions())


def test_the_way_to_an_evaluation_does_not_import_torch():
    names = "asking, film_files, questions, report, scoring, suites"
    code = f"from streammem.evaluation import {names}; from streammem.cli import build_parser; "
    code += "build_parser(); import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
