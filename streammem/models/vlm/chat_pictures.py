"""A model's own processor, composed without torchvision, and prompts of text and pictures for it.

    pictures = ChatPictures(open_processor(folder), name)
    inputs = pictures.inputs([["[00:04.0-00:09.0] ", picture, "Describe this scene."]])

Placeholders, tokens a picture and the frame of a turn are the processor's. What stands where is
ours: a template that moves pictures to the front is given them in the text. No weights here.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

from streammem.errors import BackboneError
from streammem.models.once import PartLock

PicturePrompt = Sequence[str | np.ndarray]
FIRST, THEN = "FIRST", "THEN"  # seen by the template only, never by a user's text
CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


class ChatPictures:
    """Turns prompts of text and pictures into a model's inputs. Threads may share it.

    Args:
        processor: of transformers, with a chat template.
        name: of the model, for messages.
        image_options: of the image processor, over those of its file, as in
            ``{"do_image_splitting": False}``.

    Raises:
        BackboneError: it has no chat template, or one that shows no picture.
    """

    def __init__(
        self, processor: Any, name: str, image_options: Mapping[str, Any] | None = None
    ) -> None:
        # A fast tokenizer has state: how the rows of a batch are padded.
        self._lock = PartLock()
        self.processor, self._name = processor, name
        self._image_options = dict(image_options or {})
        tokenizer = processor.tokenizer
        template = processor.chat_template or tokenizer.chat_template
        if not template:
            raise BackboneError(
                f"{name}: has no chat template; take the variant that follows instructions"
            )
        # A thought is no answer. Templates that do not know the option must not be given it.
        thinks = "enable_thinking" in str(template)
        self._template_options = {"enable_thinking": False} if thinks else {}
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        special = {token.content for token in tokenizer.added_tokens_decoder.values()}
        special |= set(tokenizer.all_special_tokens)
        special |= {
            value
            for key, value in vars(processor).items()
            if key.endswith("_token") and isinstance(value, str)
        }
        self._control = sorted((t for t in special if t.strip()), key=len, reverse=True)
        self._slot = self._picture_slot()

    def _picture_slot(self) -> str | None:
        """Return what stands for a picture in a text; None where the template keeps the order."""
        first, picture, then = _text(FIRST), {"type": "image"}, _text(THEN)
        try:
            between = _between(self._rendered([first, picture, then]))
            if between != _between(self._rendered([first, then])):
                return None
            bare, shown = self._rendered([first]), self._rendered([picture, first])
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise BackboneError(
                f"{self._name}: its chat template does not take pictures ({reason})"
            ) from error
        pairs = enumerate(zip(bare, shown, strict=False))
        begin = next((place for place, (one, other) in pairs if one != other), len(bare))
        slot = shown[begin : len(shown) - (len(bare) - begin)]
        if not slot or not shown.endswith(bare[begin:]):
            raise BackboneError(f"{self._name}: its chat template shows no picture")
        return slot

    def text(self, prompt: PicturePrompt) -> str:
        """Return a prompt as its template writes it, a placeholder for each picture."""
        content: list[dict[str, str]] = []
        for part in prompt:
            if isinstance(part, str):
                piece = self._plain(part)
            elif self._slot is None:
                content.append({"type": "image"})
                continue
            else:
                piece = self._slot
            if content and content[-1]["type"] == "text":
                content[-1]["text"] += piece
            else:
                content.append(_text(piece))
        return self._rendered(content)

    def inputs(self, prompts: Sequence[PicturePrompt]) -> Any:
        """Return what the model reads of prompts, padded on the left: a ``BatchFeature``."""
        texts = [self.text(prompt) for prompt in prompts]
        shown = [
            [Image.fromarray(part) for part in prompt if not isinstance(part, str)]
            for prompt in prompts
        ]
        tokenizer = self.processor.tokenizer
        begins = bool(tokenizer.bos_token) and texts[0].startswith(tokenizer.bos_token)
        pictures: dict[str, Any] = {}
        if any(shown):
            pictures = {"images": shown, "images_kwargs": self._image_options}
        with self._lock:
            return self.processor(
                text=texts,
                **pictures,
                text_kwargs={
                    "padding": True,
                    "padding_side": "left",
                    "add_special_tokens": not begins,
                },
                common_kwargs={"return_tensors": "pt"},
            )

    def decoded(self, ids: Sequence[int]) -> str:
        """Decode the whole characters: the last one may lack bytes that later tokens bring."""
        with self._lock:
            text: str = self.processor.tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return text.rstrip("\ufffd")

    def _rendered(self, content: Sequence[Mapping[str, str]]) -> str:
        """Frame content as one user turn that waits for the reply."""
        turn = {"role": "user", "content": list(content)}
        rendered: str = self.processor.apply_chat_template(
            [turn], tokenize=False, add_generation_prompt=True, **self._template_options
        )
        return rendered

    def _plain(self, text: str) -> str:
        """Take control tokens apart: no text may stand for a picture, or end a turn."""
        for token in self._control:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def open_processor(folder: str | Path) -> Any:
    """Open the processor of a model's folder; what reads videos is left out.

    Pictures go through Pillow wherever this runs, so that a prompt does not depend on whether
    torchvision is installed.

    Args:
        folder: of the model's files.

    Raises:
        OSError, ValueError, ImportError: as transformers.
        BackboneError: it names no processor that transformers has.
    """
    cls = _processor_class(folder)
    composed = type(cls.__name__, (_WithoutVideos, cls), {"__module__": cls.__module__})
    # SmolVLM's refuses to open without num2words, with which it would count a video's frames.
    module_globals = cls.__init__.__globals__
    lacks_numbers = "num2words" in module_globals and module_globals["num2words"] is None
    if lacks_numbers:
        module_globals["num2words"] = str
    try:
        return composed.from_pretrained(folder, local_files_only=True)  # type: ignore[attr-defined]
    finally:
        if lacks_numbers:
            module_globals["num2words"] = None


class _NoVideos:
    """Stands in a processor where torchvision would read videos: pictures alone are shown."""

    num_frames = fps = None
    model_input_names: tuple[str, ...] = ()


class _WithoutVideos(ProcessorMixin):
    """Composes a processor's parts: Pillow's image processor, the tokenizer, no videos."""

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        folder, parts = pretrained_model_name_or_path, list[Any]()
        for part in cls.get_attributes():
            if "tokenizer" in part:
                parts.append(cls._load_tokenizer_from_pretrained(part, folder, **kwargs))
            elif part == "image_processor":
                parts.append(AutoImageProcessor.from_pretrained(folder, backend="pil", **kwargs))
            elif part == "video_processor":
                parts.append(_NoVideos())
            else:
                parts.append(AutoFeatureExtractor.from_pretrained(folder, **kwargs))
        return parts

    def __repr__(self) -> str:  # transformers logs it; its own writes every part as JSON
        return type(self).__name__

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if isinstance(argument, _NoVideos):
            return _NoVideos
        return super().check_argument_for_proper_class(argument_name, argument)


def _processor_class(folder: str | Path) -> Any:
    """Find the processor's class: the files name it, else the kind of model does."""
    for name in CONFIGS:
        path = Path(folder) / name
        if path.is_file():
            named = json.loads(path.read_text(encoding="utf-8")).get("processor_class")
            if named and (found := processor_class_from_name(named)):
                return found
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if type(config) in PROCESSOR_MAPPING:
        return PROCESSOR_MAPPING[type(config)]
    raise BackboneError(f"{folder}: transformers has no processor for {config.model_type}")


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _between(rendered: str) -> str | None:
    """Return what a template writes between two texts; None where it turned their order."""
    _, found, rest = rendered.partition(FIRST)
    between, then, _ = rest.partition(THEN)
    return between.strip() if found and then else None
