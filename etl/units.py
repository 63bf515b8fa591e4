"""Bytes, seconds and numbers of things as short texts for people."""


def size(number: float) -> str:
    """Return bytes as a short text, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def duration(seconds: float) -> str:
    """Return seconds as a short text."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def count(number: int, thing: str) -> str:
    """Return a number of things, as ``1 picture`` and ``2,000 pictures``."""
    return f"{number:,} {thing}{'s' * (number != 1)}"
