"""Others' harnesses score a server: a model of lmms-eval over HTTP, which imports nothing of ours.

Where lmms-eval itself is installed, its own classes run a task that was made up, too; otherwise
stand-ins of the few that the model uses.
"""

import ast
import asyncio
import importlib.util
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
async def test_a_made_up_task_of_lmms_eval_runs_over_its_own_classes(
    listening, tmp_path, monkeypatch
):
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    task_file = pytest.importorskip("lmms_eval.api.task", reason="lmms-eval is not complete")
    datasets = pytest.importorskip("datasets")
    openai_file = pytest.importorskip("lmms_eval.models.chat.openai")
    from lmms_eval.models.registry_v2 import ModelManifest, ModelRegistryV2

    # 1. A task of lmms-eval, on two films.
    (tmp_path / "films").mkdir()
    docs = docs_of(tmp_path / "films")
    columns = {name: [doc[name] for doc in docs] for name in docs[0]}
    table = datasets.table.InMemoryTable.from_pydict(columns)
    dataset = datasets.DatasetDict({"test": datasets.Dataset(table, fingerprint="made-up")})
    monkeypatch.setattr(
        task_file.ConfigurableTask, "download",
        lambda self, *_, **__: setattr(self, "dataset", dataset)
        or setattr(self, "dataset_no_image", dataset),
    )  # fmt: skip
    task = task_file.ConfigurableTask(config={
        "task": "made_up", "dataset_path": "none", "test_split": "test",
        "output_type": "generate_until", "doc_to_visual": lambda doc: [doc["video"]],
        "doc_to_text": lambda doc, *_, **__: doc["text"], "doc_to_target": lambda doc: "A",
        "doc_to_messages": messages_of, "generation_kwargs": {"max_new_tokens": 4},
        "metric_list": [{"metric": "exact_match"}],
    })  # fmt: skip
    task.build_all_requests(limit=None, rank=0, world_size=1)
    assert len(task.instances) == 4
    # 2. Its model by the entry point's manifest, and its `openai` model with `pass_video_url`.
    monkeypatch.syspath_prepend(str(FOLDER))
    import streammem_lmms_eval

    registry = ModelRegistryV2()
    registry.register_manifest(streammem_lmms_eval.manifest())
    assert isinstance(streammem_lmms_eval.manifest(), ModelManifest)
    ours = registry.get_model_class("streammem")
    async with listening(files=(tmp_path / "films",)) as (url, sessions):
        for model in (
            ours(base_url=url),
            openai_file.OpenAICompatible(
                model_version="streammem", base_url=f"{url}/v1", api_key="none",
                pass_video_url=True, timeout=240, max_retries=1,
            ),
        ):  # fmt: skip
            model.task_dict["made_up"] = task.dataset
            found = await asyncio.to_thread(model.generate_until, task.instances)
            assert len(found) == 4 and all(result.text for result in found)
            assert not any("REQUEST_FAILED" in result.text for result in found), found
        assert len(sessions.hosts()) == 2, "each film was watched once for both"


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
