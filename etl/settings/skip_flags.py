"""Which flags of images keep them from being captioned."""

from etl.domain.statuses import ImageFlag
from etl.errors import ConfigError
from etl.settings.values import shown
from etl.text import did_you_mean, nearest


def skip_flags(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the flags one by one, sorted.  Raises `ConfigError` for what is none."""
    flags = {part.strip() for value in values for part in value.split(",") if part.strip()}
    for flag in sorted(flags - set(ImageFlag)):
        hint = did_you_mean(nearest(flag, ImageFlag, 0.7))
        raise ConfigError(f"skip_flag = {shown(flag)}: {hint}it must be among {', '.join(ImageFlag)}")
    return tuple(sorted(flags))
