"""Files of models on the hub: found in its cache on this computer, or fetched once by a command.

    pull("HuggingFaceTB/SmolVLM2-256M-Video-Instruct")       # `streammem models pull`
    folder = local_folder("HuggingFaceTB/SmolVLM2-256M-Video-Instruct")

Only ``pull_files`` uses the network.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from streammem.errors import BackboneError

log = logging.getLogger(__name__)

# Weights in pickles are left out: to open one is to run it.
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*")


def local_folder(name: str, revision: str = "") -> Path:
    """Return the folder of a model's files.

    Args:
        name: a folder, or OWNER/NAME on the hub.
        revision: branch, tag or commit there; empty takes ``main``.

    Raises:
        BackboneError: it is not on this computer; the message carries the command to fetch it.
    """
    if Path(name).is_dir():
        return Path(name)
    if not _is_name(name):
        raise BackboneError(f"{name}: no such folder, and no name on the hub (OWNER/NAME)")
    from huggingface_hub import try_to_load_from_cache

    # Not a snapshot as a whole: others may have fetched fewer files than `pull` does.
    kept = (
        try_to_load_from_cache(name, file, revision=revision or None)
        for file in ("modules.json", "config.json")  # the first of sentence-transformers
    )
    found = next(filter(lambda path: isinstance(path, str), kept), None)
    advice = f"run: streammem models pull hf:{name}"
    if not isinstance(found, str):
        raise BackboneError(f"{name}: not on this computer; {advice}")
    folder = Path(found).parent
    if lacks := _missing_weights(folder):
        raise BackboneError(f"{name}: {lacks} is missing on this computer; {advice}")
    return folder


def is_here(name: str, revision: str = "") -> bool:
    """Tell whether a model's files are on this computer."""
    try:
        local_folder(name, revision)
    except BackboneError:
        return False
    return True


def pull_files(name: str, revision: str = "", files: Sequence[str] = FILES) -> Path:
    """Fetch a model's files into the hub's cache, where it opens without the network from then on.

    Args:
        name: OWNER/NAME on the hub, or a folder, which is returned as it is.
        revision: as for ``local_folder``.
        files: patterns of what is fetched.

    Raises:
        BackboneError: no network, no such model, or one that needs a login.
    """
    if Path(name).is_dir():
        return Path(name)
    if not _is_name(name):
        raise BackboneError(f"{name}: no such folder, and no name on the hub (OWNER/NAME)")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    log.info("fetching %s from %s", name, constants.ENDPOINT)
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
    except GatedRepoError as error:
        raise BackboneError(
            f"{name}: its owner asks for a login; accept the terms on its page, then: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise BackboneError(f"{name}: no such model at {constants.ENDPOINT}") from error
    except Exception as error:  # each version of the library has its own kinds for no network
        reason = str(error).strip().partition("\n")[0]
        raise BackboneError(
            f"{name}: cannot be fetched from {constants.ENDPOINT} ({reason}); "
            "copy its files here and give their folder"
        ) from error


def _missing_weights(folder: Path) -> str | None:
    """Return the first file of weights that is not there, as after a fetch that broke off."""
    if (folder / "modules.json").is_file():  # each part has a folder of its own
        return None
    index = folder / "model.safetensors.index.json"
    wanted = {"model.safetensors"}
    if index.is_file():
        wanted = set(json.loads(index.read_bytes())["weight_map"].values())
    return next((name for name in sorted(wanted) if not (folder / name).is_file()), None)


def _is_name(name: str) -> bool:
    owner, slash, rest = name.partition("/")
    return bool(owner and slash and rest) and "/" not in rest and "\\" not in name
