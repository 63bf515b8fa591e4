"""Arguments of `vllm serve`, as they are written: ``NAME=VALUE`` or ``NAME``."""

import re

from etl.errors import ConfigError
from etl.settings.values import shown

OURS = ("api-key", "host", "model", "port", "served-model-name", "uds")
"""Arguments of `vllm serve` that nobody else gives: where it is reached, by whom, and what it is called."""


def vllm_arguments(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return arguments for `vllm serve`, without dashes, if each is a name or a name and a value, and not one that we
    give ourselves.  Raises `ConfigError`.
    """
    found = tuple(value.removeprefix("--") for value in values)
    for value in found:
        if not re.fullmatch(r"[a-z][a-z0-9.-]{0,99}(=.{1,1000})?", value, re.ASCII):
            raise ConfigError(f"vllm_arg = {shown(value)}: must look like tensor-parallel-size=2")
        if (name := value.partition("=")[0]) in OURS:
            raise ConfigError(f"vllm_arg = {shown(name)}: that is chosen by this program; take it out")
    return found
