"""The names of models: opening one, and the help of ``--model``, follow one table.

    >>> load("streammem-tiny")                      # a preset or a checkpoint folder
    >>> load("ollama:qwen3-vl:4b")                  # it captions and answers, ours perceives
    >>> load(answer_with="hf:NAME?quantize=4bit")   # it answers, ours does the rest

A row of the table opens a *generator*: what perceives, finds and judges comes from a model of ours,
so that a memory stays readable whichever generator writes. Nothing is imported before it is opened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streammem.config import parse_assignments, read_toml
from streammem.errors import ConfigError

if TYPE_CHECKING:
    from streammem.models.protocols import Generator, StreamModel
    from streammem.models.vlm.server import Spend

DEFAULT = "streammem-tiny"
# Of an answer: twice what a model of ours says, which stops by itself long before.
ANSWER_TOKENS = 192
OWN_KEYS = "own"  # as --keys names them
WHOLE = "preset, checkpoint folder or TOML file"


@dataclass(frozen=True, slots=True)
class GeneratorKind:
    """A kind of generator.

    Attributes:
        scheme: a name that begins with it and a colon is of this kind.
        opener: ``module:callable`` below ``streammem.models``. It takes what stands behind the
            colon, and the keywords ``device`` and ``options``: a mapping from the name's
            ``?key=value&...`` or from a TOML file, which the opener checks. It returns a
            ``Generator``, or raises ``StreammemError``.
        help: how a name is written.
        served: whether a server runs it, which costs: the opener takes ``spend``, too.
        reads_tokens: whether it reads the tokens of a model of ours: the opener takes ``base``,
            too, a callable that gives this model.
    """

    scheme: str
    opener: str
    help: str
    served: bool = False
    reads_tokens: bool = False

    def open(
        self,
        name: str,
        device: str,
        options: Mapping[str, Any],
        spend: "Spend | None",
        base: "Callable[[], StreamModel]",
    ) -> "Generator":
        """Open a generator of this kind."""
        module, _, function = self.opener.partition(":")
        opener = getattr(import_module(f"streammem.models.{module}"), function)
        more: dict[str, Any] = {"spend": spend} if self.served else {}
        more |= {"base": base} if self.reads_tokens else {}
        opened: Generator = opener(name, device=device, options=options, **more)
        return opened


GENERATORS: tuple[GeneratorKind, ...] = (
    GeneratorKind("openai", "vlm.served:open_openai", "openai:URL#NAME", served=True),
    GeneratorKind("ollama", "vlm.served:open_ollama", "ollama:NAME", served=True),
    GeneratorKind(
        "vllm", "vlm.embedded:open_vllm", "vllm:URL#NAME", served=True, reads_tokens=True
    ),
    GeneratorKind("hf", "vlm.transformers_model:open_transformers", "hf:NAME_OR_PATH"),
)


def load(
    name: str | Path = DEFAULT,
    *,
    device: str = "cpu",
    caption_with: str | None = None,
    answer_with: str | None = None,
    spend: "Spend | None" = None,
    keys: str | None = None,
) -> "StreamModel":
    """Load a model.

    Args:
        name: a preset, a checkpoint folder, a TOML file or its name in configs/, or a generator:
            ``openai:URL#NAME``, ``ollama:NAME``, ``ollama:URL#NAME``, ``vllm:URL#NAME`` or
            ``hf:NAME_OR_PATH``, each with ``?option=value&...`` where wanted. A generator captions
            and answers, and streammem-tiny does the rest.
        device: where a language model of this process runs.
        caption_with: the generator that captions instead, written likewise.
        answer_with: the generator that answers instead.
        spend: the budget of what servers are asked; None for none.
        keys: what makes the keys for search: ``own`` or None for the model's, ``hf:NAME_OR_PATH``
            for a CLIP, a SigLIP or a multimodal model of sentence-transformers, with
            ``?option=value&...`` where wanted.

    Raises:
        ConfigError: no such name, device or option, or a budget without a served generator.
        CheckpointError: a folder whose files are corrupt or of another layout.
        BackboneError: weights or a package are missing; the message says how to get them.
        ServedModelError: a server that is not there, or has no such model.
    """
    from streammem.models import checkpoint
    from streammem.models.once import once
    from streammem.models.protocols import ComposedModel

    checkpoint.check_device(device)
    if keys not in (None, OWN_KEYS):
        from streammem.models.picture_text_keys import open_keys, with_keys

        scheme, rest, options = split_name(str(keys))
        if scheme != "hf":
            raise ConfigError(f"--keys {keys}: give hf:NAME_OR_PATH")
        found_by = open_keys(rest, device=device, options=options)
        model = load(
            name, device=device, caption_with=caption_with, answer_with=answer_with, spend=spend
        )
        return with_keys(model, found_by)
    if find_generator(name):
        caption_with, answer_with = caption_with or str(name), answer_with or str(name)
        name = DEFAULT
    wanted = [
        found for one in (caption_with, answer_with) if one and (found := find_generator(one))
    ]
    if spend and not any(kind.served for kind, *_ in wanted):
        raise ConfigError("--spend is for what is asked of a server; leave it out")
    if not (caption_with or answer_with):
        return checkpoint.load_checkpoint(name, device=device)
    # Opened first: a wrong name or a server that is not there is known within a second.
    names = dict.fromkeys(name for name in (caption_with, answer_with) if name)
    open_base = once(partial(checkpoint.load_checkpoint, name, device=device), str(name))
    opened = {
        name: open_generator(name, device=device, spend=spend, base=open_base) for name in names
    }
    base = open_base()
    options = dict(base.session_options)
    if caption_with:
        # How likely a caption must be was fitted to the captions of the model's own generator:
        # confidence in another's is given, and nothing of it is withheld.
        options["min_confidence"] = 0.0
    answering = find_generator(answer_with) if answer_with else None
    if answering and not answering[0].reads_tokens:
        options["answer"] = {"max_new_tokens": ANSWER_TOKENS}
    return ComposedModel(
        name=base.name,
        fingerprint=base.fingerprint,
        perceiver=base.perceiver,
        text_encoder=base.text_encoder,
        generator=opened[caption_with] if caption_with else base.generator,
        segment_encoder=base.segment_encoder,
        confidence_model=base.confidence_model,
        reranker=None if caption_with else base.reranker,
        session_options=options,
        answer_generator=opened[answer_with] if answer_with else base.answer_generator,
    )


def open_generator(
    name: str | Path,
    *,
    device: str = "cpu",
    spend: "Spend | None" = None,
    base: "Callable[[], StreamModel] | None" = None,
) -> "Generator":
    """Open a generator by its name.

    Args:
        name: as ``load`` takes it, of a generator.
        device: where it runs, if it runs in this process.
        spend: the budget of what a server is asked.
        base: gives the model whose tokens it reads, if it reads any; None for streammem-tiny.

    Raises:
        ConfigError: not the name of a generator, or an option that it does not have.
        StreammemError: it cannot be opened.
    """
    found = find_generator(name)
    if found is None:
        raise ConfigError(f"{name}: captions and answers are written with {generators_help()}")
    kind, rest, options = found
    if base is None:
        from streammem.models import checkpoint

        base = partial(checkpoint.load_checkpoint, DEFAULT, device=device)
    return kind.open(rest, device, options, spend, base)


def find_generator(name: str | Path) -> tuple[GeneratorKind, str, dict[str, Any]] | None:
    """Split the name of a generator; nothing is opened.

    A TOML file, or the name of one in configs/, names a generator by ``generator = "hf:NAME"``,
    with its options in a table ``[options]``.

    Returns:
        Its kind, what its opener takes, and its options; None for a model of another kind.

    Raises:
        ConfigError: options that cannot be read.
    """
    text, options = str(name), dict[str, Any]()
    scheme, colon, _ = text.partition(":")
    if not colon or scheme not in {kind.scheme for kind in GENERATORS}:
        said = _toml(text)
        if "generator" not in said:
            return None
        if unknown := said.keys() - {"generator", "options", "about"}:
            raise ConfigError(f"{name}: {', '.join(sorted(unknown))}: no such key")
        text, options = str(said["generator"]), dict(said.get("options", {}))
    scheme, rest, stated = split_name(text)
    kind = next((kind for kind in GENERATORS if kind.scheme == scheme), None)
    if kind is None:
        raise ConfigError(f"{name}: generator {text!r}: give {generators_help()}")
    return kind, rest, options | stated


def generators_help() -> str:
    """List how generators are written, for ``--help``."""
    return ", ".join(kind.help for kind in GENERATORS)


def split_name(text: str) -> tuple[str, str, dict[str, Any]]:
    """Split ``SCHEME:REST?key=value&...`` into its three parts."""
    scheme, _, rest = text.partition(":")
    # A question mark before the # belongs to a URL.
    url, sharp, last = rest.rpartition("#")
    last, _, query = last.partition("?")
    return scheme, url + sharp + last, parse_assignments([p for p in query.split("&") if p])


def _toml(name: str) -> dict[str, Any]:
    """Read the TOML file that a name means; {} where it means none."""
    from streammem.models.checkpoint import CONFIGS, PRESETS

    path = Path(name) if name.endswith(".toml") else CONFIGS / f"{name}.toml"
    return read_toml(path) if name not in PRESETS and path.is_file() else {}
