"""The table of settings in docs/cli.md, as the settings have it; run as a program, it writes that there."""

import re
from pathlib import Path
from typing import Any

from etl.setting_values import Setting, Trust, known
from etl.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

HEAD = ("| setting | flag | default | accepts | from | commands | meaning |", "|---|---|---|---|---|---|---|")


def lines(settings: type[Any] = Settings) -> list[str]:
    """Return the lines of the table."""
    return [*HEAD, *("| " + " | ".join(cells(one)) + " |" for one in known(settings).values())]


def cells(one: Setting) -> list[str]:
    """Return what is said of one setting."""
    flags = [one.flag] + [f"--no-{one.flag[2:]}"] * (one.kind is bool)
    default = str(one.default).lower() if one.kind is bool else str(one.default)
    shown = "none" if one.default in ("", ()) else f"`{default}` {one.unit}".rstrip()
    span = "" if one.limits is None else f"{number(one.limits[0])} to {number(one.limits[1])}"
    also = [f"`etl {command}` takes it as `{flag}` too." for command, flag in one.also.items()]
    return [
        f"`{one.name}`",
        ", ".join(f"`{flag}`" for flag in flags),
        shown,
        span or ", ".join(f"`{choice}`" for choice in one.choices),
        "you alone" if one.trust is Trust.OWN else "any folder",
        ", ".join(one.commands) or "all",
        " ".join([one.help, *also]),
    ]


def number(value: float) -> str:
    """Return a limit in digits."""
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        re.sub(r"(?m)^\| setting \|.*\n(\|.*\n)*", lambda _: "\n".join(lines()) + "\n", text), encoding="utf-8"
    )
