"""Arguments of chat templates, such as ``enable_thinking``: written into the template, so that nobody forgets them."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etl.errors import ModelError
from etl.settings.template_arguments import template_argument
from etl.text import did_you_mean, nearest

DEFAULTS: Mapping[str, Any] = {"enable_thinking": False}
"""What templates that know these arguments are given where the user says nothing: a caption needs no reasoning."""

_RESERVED = frozenset({"add_generation_prompt", "bos_token", "documents", "eos_token", "messages", "tools"})
"""What the chat itself is made of."""

_WORD = re.compile(r"(?<![.\w'\"])[A-Za-z_]\w*")


def arguments(name: str, template: str, given: Sequence[str]) -> dict[str, Any]:
    """Return the arguments for a model's template: those ``given`` as ``NAME=VALUE``, and the defaults that it knows.

    Raises `ModelError` for one that it does not know.
    """
    known = set(_WORD.findall(template))
    found = {argument: value for argument, value in DEFAULTS.items() if argument in known}
    for text in given:
        argument, value = template_argument(text)
        if argument in _RESERVED:
            raise ModelError(f"--chat-template-arg cannot set {argument}, which is part of every chat; leave it out")
        if argument not in known:
            hint = did_you_mean(nearest(argument, known)).strip() or "leave it out"
            raise ModelError(f"the chat template of {name} knows no argument {argument}; {hint}")
        found[argument] = value
    return found


def with_arguments(template: str, values: Mapping[str, Any]) -> str:
    """Return the template with these arguments set in it; unchanged where there are none."""
    # Text, numbers, true, false and lists are written in Jinja as in JSON.
    lines = [f"{{%- set {name} = {_literal(value)} -%}}" for name, value in values.items()]
    return "".join(lines) + template


def _literal(value: Any) -> str:
    return "none" if value is None else json.dumps(value)
