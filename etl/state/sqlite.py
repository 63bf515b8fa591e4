"""sqlite-utils without numpy, which it loads wherever it is installed, only to know numpy's number types.

That is 60 ms and 15 MB for every command; nothing of ours ever binds such a number.
"""

import sys

_KEPT_OUT = "numpy"

if _KEPT_OUT in sys.modules:
    from sqlite_utils import Database, Migrations
else:
    # `None` makes an import fail as if the package were not installed; sqlite-utils is prepared for that.
    sys.modules[_KEPT_OUT] = None  # type: ignore[assignment]
    try:
        from sqlite_utils import Database, Migrations
    finally:
        del sys.modules[_KEPT_OUT]

__all__ = ["Database", "Migrations"]
