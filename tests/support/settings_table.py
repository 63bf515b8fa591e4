"""The tables of settings in docs/cli.md, one a group, as the settings have it; run as a program, it writes them."""

import re
from pathlib import Path
from typing import Any

from etl.settings import Settings
from etl.settings.values import Group, Setting, Trust, known
from etl.units import written

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

HEAD = ("| setting | flag | default | accepts | from | commands | meaning |", "|---|---|---|---|---|---|---|")


def lines(settings: type[Any] = Settings) -> list[str]:
    """Return the lines of the tables, with their headings."""
    found: list[str] = []
    for group in Group:
        rows = ["| " + " | ".join(cells(one)) + " |" for one in known(settings).values() if one.group is group]
        found += [f"### {group}", "", *HEAD, *rows, ""] if rows else []
    return found


def cells(one: Setting) -> list[str]:
    """Return what is said of one setting."""
    flags = [one.flag, *filter(None, [one.short])] + [f"--no-{one.flag[2:]}"] * (one.kind is bool)
    default = str(one.default).lower() if one.kind is bool else one.default_text
    span = "" if one.limits is None else " to ".join(written(limit, one.unit) for limit in one.limits)
    also = [f"`etl {command}` takes it as `{flag}` too." for command, flag in one.also.items()]
    return [
        f"`{one.name}`",
        ", ".join(f"`{flag}`" for flag in flags),
        f"`{default}`" if default else "none",
        span or ", ".join(f"`{choice}`" for choice in one.choices),
        "you alone" if one.trust is Trust.OWN else "any folder",
        ", ".join(one.commands) or "all",
        " ".join([one.help, *also]),
    ]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    written_anew = re.sub(r"(?s)### General\n\n\| setting \|.*", lambda _: "\n".join(lines()).rstrip() + "\n", text)
    PAGE.write_text(written_anew, encoding="utf-8")
