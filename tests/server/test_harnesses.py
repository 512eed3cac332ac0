"""Others' harnesses score a server: a model of lmms-eval over HTTP, which imports nothing of ours.

Requests are answered over stand-ins of the few classes of lmms-eval that the model uses; where it
is installed, its own registry takes the model.
"""

import ast
import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command_line import record

pytestmark = pytest.mark.anyio
FOLDER = Path(__file__).parents[2] / "configs" / "lmms_eval"
FILE = FOLDER / "streammem_lmms_eval.py"


@dataclass
class GenerationResult:
    text: str
    token_counts: object = None


@dataclass
class TokenCounts:
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass
class ModelManifest:
    model_id: str
    chat_class_path: str


@dataclass
class Instance:
    args: tuple


class Lmms:
    def __init__(self):
        self.task_dict = {}


def module(name, **content):
    made = types.ModuleType(name)
    vars(made).update(content)
    return made


@pytest.fixture
def plugin(monkeypatch):
    """The package's module, over stand-ins of what it imports of lmms-eval."""
    for name, content in (
        ("lmms_eval", {}),
        ("lmms_eval.api", {}),
        ("lmms_eval.api.instance", (GenerationResult, TokenCounts)),
        ("lmms_eval.api.model", {"lmms": Lmms}),
        ("lmms_eval.models", {}),
        ("lmms_eval.models.registry_v2", {"ModelManifest": ModelManifest}),
    ):  # fmt: skip
        named = content if isinstance(content, dict) else {each.__name__: each for each in content}
        monkeypatch.setitem(sys.modules, name, module(name, **named))
    return loaded()


def loaded():
    spec = importlib.util.spec_from_file_location("streammem_lmms_eval", FILE)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def films(folder):
    return [str(record(folder / f"{c}.mp4", scenes=((c, 2),))) for c in ("red", "blue")]


def docs_of(folder):
    red, blue = films(folder)
    return [{"video": video, "text": f"What is there? ({n})\nA. red\nB. blue"}
            for n, video in enumerate((red, blue, red, red))]  # fmt: skip


def messages_of(doc):
    content = [{"type": "video", "url": doc["video"]}, {"type": "text", "text": doc["text"]}]
    return [{"role": "user", "content": content}]


async def test_videos_are_uploaded_once_each_and_answers_come_in_the_requests_order(
    listening, tmp_path, plugin
):
    docs = docs_of(tmp_path)
    requests = [
        Instance(("ctx", messages_of, {"max_new_tokens": 4}, n, "task", "test"))
        for n in range(len(docs))
    ]
    async with listening(token="a token of the tests") as (url, sessions):
        received, receive = [], sessions.uploads.receive

        async def counted(blocks):
            received.append(True)
            return await receive(blocks)

        sessions.uploads.receive = counted
        model = plugin.Streammem(base_url=f"{url}/", token="a token of the tests", batch_size=1)
        model.task_dict = {"task": {"test": docs}}
        answers = await asyncio.to_thread(model.generate_until, requests)
        asked = [e.question for host in sessions.hosts().values() for e in host.events.kept()
                 if hasattr(e, "question")]  # fmt: skip
        assert len(received) == 2 and len(sessions.hosts()) == 2
        assert sorted(asked) == sorted(doc["text"] for doc in docs)
        assert all(answer.text and answer.token_counts.output_tokens for answer in answers)
        assert sessions.uploads.used_bytes == 0, "nothing is left behind"
        two = [*messages_of(docs[0]), *messages_of(docs[1])]
        requests = [Instance(("ctx", lambda doc: two, {}, 0, "task", "test"))]
        with pytest.raises(ValueError, match="2 videos"):
            await asyncio.to_thread(model.generate_until, requests)
        wrong = plugin.Streammem(base_url=url, token="a wrong token of the tests")
        wrong.task_dict = model.task_dict
        with pytest.raises(RuntimeError, match="HTTP 401"):
            requests = [Instance(("ctx", messages_of, {}, 0, "task", "test"))]
            await asyncio.to_thread(wrong.generate_until, requests)


def test_the_package_imports_nothing_of_ours_and_its_entry_point_names_its_class(plugin):
    import tomllib

    names = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(FILE.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not any(name.split(".")[0] == "streammem" for name in names)
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    (entry,) = project["entry-points"]["lmms_eval.models"].values()
    assert entry == "streammem_lmms_eval:manifest"
    made = plugin.manifest()
    assert made.model_id == "streammem"
    assert (
        made.chat_class_path == "streammem_lmms_eval.Streammem" and not plugin.Streammem.is_simple
    )


@pytest.mark.heavy
def test_lmms_evals_own_registry_takes_the_model(monkeypatch):
    pytest.importorskip("lmms_eval.api.model", reason="lmms-eval is not installed")
    from lmms_eval.models.registry_v2 import ModelManifest, ModelRegistryV2

    monkeypatch.syspath_prepend(str(FOLDER))
    import streammem_lmms_eval

    made, registry = streammem_lmms_eval.manifest(), ModelRegistryV2()
    registry.register_manifest(made)
    assert isinstance(made, ModelManifest)
    assert registry.get_model_class("streammem") is streammem_lmms_eval.Streammem
    streammem_lmms_eval.Streammem(base_url="http://localhost:1")


TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: DOCS}}
test_split: test
output_type: generate_until
doc_to_visual: !function colours.visual
doc_to_text: !function colours.text
doc_to_target: answer
generation_kwargs: {max_new_tokens: 16}
process_results: !function colours.right
metric_list: [{metric: named, aggregation: mean, higher_is_better: true}]
"""
FUNCTIONS = """
def visual(doc):
    return [doc["video"]]

def text(doc, kwargs=None):
    return doc["text"]

def right(doc, results):
    return {"named": float(doc["answer"] in results[0])}
"""


@pytest.mark.heavy
@pytest.mark.parametrize("by", ["streammem", "openai"])
async def test_lmms_evals_own_evaluator_scores_a_whole_task_through_the_server(
    listening, tmp_path, by
):
    lmms_eval = pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    # 1. A task of its own as lmms-eval reads them, and the package as pip leaves it.
    task, out = tmp_path / "task", tmp_path / "out"
    task.mkdir()
    docs = [{**doc, "answer": "e"} for doc in docs_of(tmp_path)]
    (task / "docs.json").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (task / "colours.yaml").write_text(TASK.replace("DOCS", str(task / "docs.json")))
    (task / "colours.py").write_text(FUNCTIONS)
    installed = tmp_path / "pip" / "streammem_lmms_eval-0.1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Name: streammem-lmms-eval\nVersion: 0.1.0\n")
    entry = "[lmms_eval.models]\nstreammem = streammem_lmms_eval:manifest\n"
    (installed / "entry_points.txt").write_text(entry)
    paths = [FOLDER, installed.parent, os.environ.get("PYTHONPATH", ""),
             Path(lmms_eval.__file__).parents[1]]  # fmt: skip
    around = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HOME": str(tmp_path / "hf"),
        "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    # 2. Its command, whole.
    async with listening(files=(tmp_path,)) as (url, sessions):
        given = {
            "streammem": f"base_url={url}",
            "openai": f"model_version=streammem,base_url={url}/v1,api_key=none,"
            "pass_video_url=True,timeout=60,num_concurrent=2",
        }
        command = [
            sys.executable, "-m", "lmms_eval", "--model", by, "--model_args", given[by],
            "--tasks", "colours", "--include_path", str(task), "--batch_size", "1",
            "--log_samples", "--output_path", str(out),
        ]  # fmt: skip
        done = await asyncio.to_thread(
            subprocess.run, command, env={**os.environ, **around}, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        told = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == 0 and "Error during evaluation" not in told, told
        answers = [e for host in sessions.hosts().values() for e in host.events.kept()
                   if hasattr(e, "question")]  # fmt: skip
    # 3. What it scored is what the server replied.
    (results,) = out.rglob("*_results.json")
    (samples,) = out.rglob("*_samples_colours.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    replies = sorted("".join(line["filtered_resps"]) for line in lines)
    assert replies == sorted(answer.text for answer in answers) and len(replies) == len(docs)
    found = json.loads(results.read_text())["results"]["colours"]["named,none"]
    assert found == pytest.approx(sum("e" in reply for reply in replies) / len(docs))


async def test_the_class_of_the_guide_for_vlmevalkit_asks_about_the_video_itself(
    listening, tmp_path, monkeypatch
):
    import re

    import httpx2 as httpx

    class BaseAPI:
        fail_msg = "failed"

        def __init__(self, **more): ...

    guide = (Path(__file__).parents[2] / "docs" / "guide" / "harnesses.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    for name, content in (
        ("vlmeval", {}), ("vlmeval.api", {}), ("vlmeval.api.base", {"BaseAPI": BaseAPI}),
        ("requests", {"post": httpx.post}),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module(name, **content))
    made = {}
    exec(code, made)
    red, _ = films(tmp_path)
    message = [
        {"type": "video", "value": red},
        {"type": "text", "value": "Which?\nA. red\nB. blue"},
    ]
    async with listening(files=(tmp_path,)) as (url, sessions):
        model = made["Streammem"](base_url=f"{url}/v1")
        assert model.is_api and model.VIDEO_LLM
        code, text, _ = await asyncio.to_thread(model.generate_inner, message, dataset="MVBench")
        assert code == 0 and text and len(sessions.hosts()) == 1
        message[0]["value"] = "/etc/hostname"
        code, text, _ = await asyncio.to_thread(model.generate_inner, message)
        assert (code, text) == (-1, "failed")
