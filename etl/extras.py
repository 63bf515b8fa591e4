"""The library for Parquet, which is installed only where somebody wants it."""

from typing import Any

from etl.errors import ConfigError


def pyarrow() -> Any:
    """Return the package ``pyarrow``, its module ``parquet`` loaded; raise `ConfigError` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet needs one more package: pip install 'caption-etl[parquet]'") from error
    return pyarrow
