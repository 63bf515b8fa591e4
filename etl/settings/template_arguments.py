"""Arguments for a model's chat template, as they are written: ``NAME=VALUE``."""

import json
import re
from typing import Any

from etl.errors import ConfigError
from etl.settings.values import shown


def template_arguments(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return arguments of a chat template if each is a name and a value.  Raises `ConfigError`."""
    for value in values:
        if not re.fullmatch(r"[A-Za-z_]\w{0,99}=.{1,1000}", value, re.ASCII):
            raise ConfigError(f"chat_template_arg = {shown(value)}: must look like enable_thinking=false")
    return values


def template_argument(text: str) -> tuple[str, Any]:
    """Return name and value of an argument that `template_arguments` has accepted; what is no JSON is a text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
