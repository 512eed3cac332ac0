"""A real SentencePiece file, opened with what the extra `parents` brings and nothing else."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.models.videollamb import published

sentencepiece = pytest.importorskip("sentencepiece")
pytest.importorskip("google.protobuf")

ROOT = Path(__file__).parents[3]
TEXTS = ("Who is it?", "\nWhat happens  here? </s> ASSISTANT:", "Ünïcode 猫", "USER: ")
OPEN = """
import sys
from pathlib import Path
from streammem.models.videollamb.options import ParentOptions
from streammem.models.videollamb.published import ParentFile, open_model
from tests.tiny import tiny_model

said = ParentFile(weights=sys.argv[1], options=ParentOptions(pool=3))
language = open_model("x", said, tiny_model()).language
for text in Path(sys.argv[2]).read_text().split("|"):
    read = language.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    print(*read.input_ids)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The tiny checkpoint with a trained tokenizer.model in place of tokenizer.json."""
    folder = published.write(tmp_path_factory.mktemp("spm") / "videollamb")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    corpus = folder / "corpus.txt"
    lines = ["who is it and what happens here", "User Assistant Who What: .,?!", "a cat, a dog"]
    corpus.write_text("\n".join(lines * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), model_type="bpe",
        vocab_size=published.WORDS, byte_fallback=True, hard_vocab_limit=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return folder


def brought_by(requirements, extra=""):
    """Return the installed distributions that pip would install for these requirements."""
    found, waiting = {}, [(Requirement(line), extra) for line in requirements]
    while waiting:
        wanted, within = waiting.pop()
        if wanted.marker and not wanted.marker.evaluate({"extra": within}):
            continue
        try:
            distribution = importlib.metadata.distribution(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for each in ("", *wanted.extras):
            if (wanted.name, each) not in found:
                found[wanted.name, each] = distribution
                waiting += [(Requirement(line), each) for line in distribution.requires or ()]
    return found.values()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of packages that holds the dependencies and the extra alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["parents"]]
    folder = tmp_path_factory.mktemp("site")
    for distribution in brought_by(wanted):
        for first in {Path(file).parts[0] for file in distribution.files or ()} - {".."}:
            link = folder / first
            if not link.exists():
                link.symlink_to(distribution.locate_file(first))
    return folder


@pytest.mark.heavy
def test_a_sentencepiece_file_opens_with_the_extra_parents_alone(checkpoint, site, tmp_path):
    (tmp_path / "texts").write_text("|".join(TEXTS))
    paths = os.pathsep.join(map(str, (site, ROOT)))
    run = subprocess.run(
        [sys.executable, "-S", "-c", OPEN, checkpoint, tmp_path / "texts"],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    ids = [list(map(int, line.split())) for line in run.stdout.splitlines()]
    assert ids == [pieces.encode(text) for text in TEXTS]
    assert not (site / "pytest").exists() and not (site / "tiktoken").exists()
