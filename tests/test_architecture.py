"""The architecture, the guide for contributors and the threats name only files that there are."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text("utf-8") for name in ("docs/architecture.md", "CONTRIBUTING.md", "SECURITY.md")}
NAMED = re.compile(r"`([\w./]+(?:\.(?:py|md|yml)|/))`")


def places(page: str) -> Iterator[tuple[str, Path | None]]:
    """Yield each file or folder that the page names, and where it is: in the root, in `etl`, or beside the last one.

    Only within a line is a name looked for beside the last one.
    """
    for line in PAGES[page].splitlines():
        before = ROOT
        for name in NAMED.findall(line):
            found = next((place for base in (ROOT, ROOT / "etl", before) if (place := base / name).exists()), None)
            yield name, found
            if found is not None:
                before = found if found.is_dir() else found.parent


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    """Every path of the page exists."""
    named = list(places(page))
    # A folder of the state, not of the code.
    assert (len(named) > 15, [name for name, found in named if found is None and name != "images/parts/"]) == (True, [])


def test_the_words_open_the_architecture() -> None:
    """The glossary comes first, and explains each word once."""
    page = PAGES["docs/architecture.md"]
    words = re.findall(r"^\| ([^|]+?) \|", page[page.index("## Words") : page.index("## The idea")], re.MULTILINE)
    single = [word.strip() for row in words[1:] for word in row.split(",")]
    assert page.index("## Words") < 40
    assert {"manifest", "record", "source", "recipe", "slot", "lease", "failed", "not needed"} <= set(single)
    assert len(single) == len(set(single))
