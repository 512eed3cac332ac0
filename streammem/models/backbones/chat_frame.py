"""What stands around a user's turn in a chat model's prompt; what is in it, others decide."""

from functools import partial
from typing import Any

from jinja2 import TemplateError


def chat_frame(tokenizer: Any) -> tuple[str, str]:
    """Return what the chat template puts before and after a user's text, without a system turn.

    Args:
        tokenizer: of transformers, with a chat template or without.
    """
    # Models that are trained with a beginning-of-sequence token speak badly without it.
    begins = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    start = tokenizer.bos_token if begins else ""
    if not tokenizer.chat_template:
        return start, "\n"
    mark = "CONTENT"  # seen by the template only, never by a user's text
    user = {"role": "user", "content": mark}
    render = partial(tokenizer.apply_chat_template, tokenize=False)
    try:  # an empty system turn keeps some templates from adding one of their own
        system = [{"role": "system", "content": ""}]
        framed = render([*system, user], add_generation_prompt=True)
        framed = framed.removeprefix(render(system))
    except TemplateError:
        framed = render([user], add_generation_prompt=True)
    before, _, after = framed.partition(mark)
    return start + before.removeprefix(start), after
