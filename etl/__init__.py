"""caption-etl: a resumable, checkpointed pipeline from a manifest of image URLs to captions.

    import etl

    report = etl.run("manifest.jsonl", "captions.jsonl", prompt="Describe the picture of {{ title }}.")
    for caption in etl.State("state").captions():
        print(caption.key, caption.text)

Each name is loaded when it is first asked for (PEP 562), so ``import etl`` costs next to nothing.  What is not in
``__all__`` may change with any version.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from etl.version import __version__

if TYPE_CHECKING:
    from etl import errors
    from etl.api import Caption, Record, State
    from etl.domain.views import Progress
    from etl.errors import EtlError
    from etl.run.call import run
    from etl.run.plan import Report
    from etl.settings import Settings
    from etl.settings.sources import load_settings
    from etl.state.read.failures import Failure

__all__ = [
    "Caption", "EtlError", "Failure", "Progress", "Record", "Report", "Settings", "State", "__version__", "errors",
    "load_settings", "run",
]  # fmt: skip

_HOMES = {
    "Caption": "etl.api", "Record": "etl.api", "State": "etl.api",
    "Failure": "etl.state.read.failures", "Progress": "etl.domain.views",
    "EtlError": "etl.errors",
    "Report": "etl.run.plan",
    "Settings": "etl.settings",
    "load_settings": "etl.settings.sources",
}  # fmt: skip
"""The module that each name is loaded from."""


def __getattr__(name: str) -> object:
    if name in ("errors", "run"):
        return import_module(f"etl.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'etl' has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
