"""Stages put together into runs, and one run from its beginning to its end.

The package can be called: ``etl.run(source, ...)`` is `etl.run.call.run`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etl.run.plan import Report


class _CallablePackage(ModuleType):
    """Lets the public function have the name of its folder: the import system sets ``etl.run`` to this package."""

    def __call__(self, *arguments: Any, **options: Any) -> "Report":
        from etl.run.call import run

        return run(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
