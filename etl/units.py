"""Sizes, counts and durations: how people may write them, and how they are written for people.

``GB`` is 10^9 bytes and ``GiB`` 2^30, here as everywhere; a plain number is in the base unit: bytes, seconds, pieces.
What is shown of something that was measured is rounded (`size`, `duration`); what was set is written whole (`written`),
so that `parse` reads the same again.
"""

import re
from collections.abc import Mapping

BYTES, BYTES_PER_S, SECONDS = "bytes", "bytes/s", "s"
"""The units that `parse` and `written` know; any other one is of a count."""

UNDERSTOOD = {
    BYTES: "a size such as 20GB, 512MiB or 20000000 (bytes)",
    BYTES_PER_S: "a size each second such as 4KiB/s or 4096 (bytes)",
    SECONDS: "a duration such as 90m, 1h30m, 45s or 45 (seconds)",
}
COUNTS_UNDERSTOOD = "a whole number such as 800, 14,822, 10k or 1M"

METAVARS = {BYTES: "SIZE", BYTES_PER_S: "SIZE", SECONDS: "DURATION"}
"""What stands for a value in a help text; ``N`` where a unit is not here."""

_POWERS = "kMGTP"
_DECIMAL = {name: 1000**power for power, name in enumerate(_POWERS, start=1)}
_BINARY = {f"{name.upper()}iB": 1024**power for power, name in enumerate(_POWERS, start=1)}
_SIZES = {"B": 1, **_DECIMAL, **{f"{name}B": factor for name, factor in _DECIMAL.items()}, **_BINARY}
_DURATIONS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

MAX_LENGTH = 40
"""Characters of a number; nobody writes a longer one."""

_NUMBER = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+(?:_\d+)*)(\.\d+)?\s*([a-z]*)", re.ASCII | re.IGNORECASE)
_STEP = re.compile(
    r"(\d+(?:\.\d+)?)\s*(ms|d(?:ays?)?|h(?:ours?)?|m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?)\s*",
    re.ASCII | re.IGNORECASE,
)


def parse(text: str, unit: str = "") -> float:
    """Return the number that a text means, in its unit: an `int` of bytes or pieces, a `float` of seconds.

    Raises `ValueError`, which says what is understood.
    """
    text = text.strip()
    number = None
    if len(text) <= MAX_LENGTH:
        number = _seconds(text) if unit == SECONDS else _pieces(text, unit)
    if number is None:
        raise ValueError(f"give {understood(unit)}")
    return number


def understood(unit: str = "") -> str:
    """Return what `parse` takes for a unit, with examples."""
    return UNDERSTOOD.get(unit, COUNTS_UNDERSTOOD)


def metavar(unit: str = "") -> str:
    """Return what stands for a value of that unit in a help text."""
    return METAVARS.get(unit, "N")


def _pieces(text: str, unit: str) -> int | None:
    factors: Mapping[str, int] = _DECIMAL
    if unit in (BYTES, BYTES_PER_S):
        factors, text = _SIZES, text.removesuffix("/s") if unit == BYTES_PER_S else text
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    found = _NUMBER.fullmatch(digits)
    if found is None:
        return None
    factor = {name.lower(): factor for name, factor in factors.items()}.get(found[3].lower(), 0 if found[3] else 1)
    # In whole numbers: a float would round the bytes of a large disk.
    fraction = found[2] or "."
    digits = found[1].replace(",", "").replace("_", "") + fraction[1:]
    number, rest = divmod(int(digits) * factor, 10 ** len(fraction[1:]))
    return sign * number if factor and not rest else None


def _seconds(text: str) -> float | None:
    try:
        return float(text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", text, re.ASCII) else text)
    except ValueError:
        pass
    steps = [(float(number), "ms" if name.lower() == "ms" else name[0].lower()) for number, name in _STEP.findall(text)]
    names = [name for _, name in steps]
    # Each unit once, the larger ones first: "30m1h" is a slip of the pen.
    if not steps or _STEP.sub("", text) or names != [name for name in _DURATIONS if name in names]:
        return None
    return sum(number * _DURATIONS[name] for number, name in steps)


def written(number: float, unit: str = "") -> str:
    """Return a number as `parse` reads it again, in its largest whole units: ``512MiB``, ``400M``, ``1h30m``."""
    if unit == SECONDS:
        return _written_duration(number)
    if number != int(number):
        return f"{number:g}"
    whole = int(number)
    if unit in (BYTES, BYTES_PER_S):
        sizes = [
            f"{whole // factor}{name}" for name, factor in _SIZES.items() if name[-1] == "B" and not whole % factor
        ]
        return min(sizes, key=len) + "/s" * (unit == BYTES_PER_S) if whole else "0"
    for name, factor in reversed(_DECIMAL.items()):
        if whole >= (10_000 if name == "k" else factor) and not whole % factor:
            return f"{whole // factor}{name}"
    return f"{whole:,}" if whole >= 10_000 else str(whole)


def _written_duration(seconds: float) -> str:
    if seconds != int(seconds):
        return f"{seconds * 1000:g}ms" if seconds < 1 else f"{seconds:g}s"
    text, left = "", int(seconds)
    for name in ("d", "h", "m", "s"):
        number, left = divmod(left, int(_DURATIONS[name]))
        text += f"{number}{name}" if number else ""
    return text or "0"


def size(number: float) -> str:
    """Return bytes in powers of 1024, at most nine characters: ``512 B``, ``1.5 KiB``, ``14.2 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 99.95 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def rate(per_s: float, things: str) -> str:
    """Return a rate for people: in a minute where hardly one comes in a second."""
    return f"{per_s:.1f} {things}/s" if per_s >= 0.1 else f"{60 * per_s:.1f} {things}/min"


def duration(seconds: float) -> str:
    """Return the two largest units, at most seven characters: ``45s``, ``2m 05s``, ``1h 07m``, ``3d 4h``."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    days, rest = divmod(whole, 86400)
    return f"{days}d {rest // 3600}h" if days < 1000 else f"{days}d"


def count(number: int, thing: str, things: str = "") -> str:
    """Return a number of things, as ``1 picture`` and ``2,000 pictures``; ``things`` where an ``s`` does not do."""
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"


def percent(done: int, total: int) -> str:
    """Return whole percents: 100 only when everything is done, 0 only when nothing is; empty where there is nothing."""
    if total <= 0:
        return ""
    share = 100 * done / total
    return f"{int(min(99, max(1, share)) if 0 < done < total else share)} %"
