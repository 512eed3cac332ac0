"""The files of configs/deploy can be read, and each command in them is one of ours."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from streammem.cli import build_parser
from streammem.fleet.cameras import read_cameras

yaml = pytest.importorskip("yaml", reason="needs PyYAML, which streammem[dev] brings along")

FOLDER = Path(__file__).parent.parent / "configs" / "deploy"
FILES = {path.name: path.read_text() for path in FOLDER.iterdir()}
UNITS = [name for name in FILES if name.endswith(".service")]
COMPOSE = ("compose.yaml", "compose.cuda.yaml")
PLACES = r"\$\{\w+(?::\?[^}]*)?\}|\$\w+|%i"  # what is filled in where it runs


def check(words, where):
    """Parse a command line; one that is refused ends the test with what was typed."""
    try:
        build_parser().parse_args([re.sub(PLACES, "x", word) for word in words])
    except SystemExit as left:
        assert left.code == 0, f"{where}: streammem {shlex.join(words)}"


def typed(text):
    """The command lines of ours in comments, and in lines of a shell, continued ones joined."""
    text = re.sub(r"\\\n\s*", "", text)
    lines = [line.lstrip("# ").lstrip() for line in text.splitlines()]
    pattern = r"(?:^|\s|&& )(?:[\w~/.-]+/)?streammem ([a-z]+(?: .*)?)$"
    for line in lines:
        found = re.search(pattern, line)
        if found and found[1].split()[0] in COMMANDS:
            yield shlex.split(re.split(r"\s{2,}|[;&|`)]", found[1])[0].rstrip(",."))


COMMANDS = build_parser()._subparsers._group_actions[0].choices


def test_the_image_runs_our_command_and_holds_what_the_build_needs():
    text = re.sub(r"\\\n\s*", " ", FILES["Dockerfile"])
    steps = [line.split(None, 1) for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert steps[0][0] == "FROM"
    assert json.loads(dict(steps)["ENTRYPOINT"]) == ["streammem"]
    check(json.loads(dict(steps)["CMD"]), "Dockerfile")
    for name, value in steps:
        for source in value.split()[:-1] if name == "COPY" else ():
            assert (FOLDER.parent.parent / source).exists(), source
    extras = re.search(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)[1]
    project = tomllib.loads((FOLDER.parent.parent / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    torch = next(each for each in project["dependencies"] if each.startswith("torch"))
    assert f'"{torch}"' in text
    runs = [found.split() for found in re.findall(r"RUN streammem (.*)", text)]
    assert runs
    for words in runs:
        check(words, "Dockerfile")


def test_services_of_compose_run_commands_that_are_accepted():
    whole = {name: yaml.safe_load(FILES[name]) for name in COMPOSE}
    base, cuda = (whole[name]["services"] for name in COMPOSE)
    assert set(cuda) <= set(base)
    for name in COMPOSE:
        for service, options in whole[name]["services"].items():
            check(options["command"], f"{name}: {service}")
    # The page reads what the cameras write; a server that others reach asks for a token.
    cameras, page = base["cameras"]["command"], base["page"]["command"]
    kept = cameras[cameras.index("--memory") + 1]
    assert kept == page[page.index("--archive") + 1]
    assert "0.0.0.0" in page and "STREAMMEM_TOKEN" in base["page"]["environment"]
    for service in base.values():
        for volume in service["volumes"]:
            assert not volume.startswith("memories:") or volume == "memories:/data"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.parametrize("name", UNITS)
def test_units_of_systemd_run_commands_that_are_accepted(name):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(FILES[name])
    service = unit["Service"]
    for key in ("ExecStartPre", "ExecStart"):
        program, *words = shlex.split(service[key])
        assert program.endswith("/streammem")
        check(words, name)
    command = shlex.split(service["ExecStart"])
    assert (command[1] == "watch") == ("ExecStart" in service and "--memory" in command)
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_the_cluster_starts_our_ray_and_its_commands_are_accepted():
    cluster = yaml.safe_load(FILES["ray-cluster.yaml"])
    assert cluster["provider"]["head_ip"] not in cluster["provider"]["worker_ips"]
    assert len(cluster["provider"]["worker_ips"]) == cluster["max_workers"]
    (install,) = [line for line in cluster["setup_commands"] if "pip install" in line]
    assert "streammem[ray]" in install
    for line in cluster["setup_commands"]:
        if "bin/streammem " in line:
            check(shlex.split(line)[1:], "ray-cluster.yaml")


@pytest.mark.parametrize("name", sorted(FILES))
def test_commands_in_comments_are_accepted(name):
    comments = "\n".join(line for line in FILES[name].splitlines() if line.startswith("#"))
    for words in typed(comments):
        check(words, name)


def test_commands_are_found_in_comments():
    found = [words[0] for name in FILES for words in typed(FILES[name])]
    assert {"caption", "index", "watch", "models"} <= set(found)


def test_the_list_of_cameras_can_be_read():
    cameras = read_cameras(FOLDER / "cameras.toml")
    assert set(cameras) == {"door", "hall"} and cameras["hall"]["fps"] == 2


# -- linters, where they are installed --


@pytest.mark.heavy
def test_systemd_accepts_the_units(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    for name in UNITS:  # streammem need not be installed where they say; a template needs a name
        text = FILES[name].replace("/opt/streammem/bin/streammem", "/bin/true")
        (tmp_path / name.replace("@.", "@door.")).write_text(text)
    command = ["systemd-analyze", "verify", *sorted(tmp_path.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.heavy
def test_hadolint_accepts_the_image():
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed")
    command = ["hadolint", FOLDER / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.heavy
def test_ray_accepts_the_cluster():
    reason = "ray is not installed: pip install streammem[ray]"
    util = pytest.importorskip("ray.autoscaler._private.util", reason=reason)
    util.validate_config(util.prepare_config(yaml.safe_load(FILES["ray-cluster.yaml"])))
