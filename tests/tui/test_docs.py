"""The dashboard's page names every action and its key, and shows pictures that exist."""

import re
from pathlib import Path

from tui.keys import ACTIONS, TABS, written

PAGE = Path(__file__).parents[2] / "docs" / "dashboard.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_every_action_is_named() -> None:
    """Whoever wants to remap a key finds the name of its action, and no name that does not exist."""
    paragraph = re.search(r"The names of the actions are (.*?)\n\n", TEXT, re.DOTALL)
    assert paragraph
    assert re.findall(r"`(\w+)`", paragraph[1]) == [action.name for action in ACTIONS]


def test_every_tab_has_its_row() -> None:
    """Each screen is in the table with its keys."""
    rows = {row[1].strip(): row[0].strip() for row in re.findall(r"^\| (.*?) \| (.*?) \|", TEXT, re.MULTILINE)}
    for action in TABS:
        assert rows[action.label] == ", ".join(f"`{key}`" for key in written(action.keys).split(" "))


def test_pictures_and_links_lead_somewhere() -> None:
    """Every picture and page that is named exists, and no picture lies there for nothing."""
    named = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", TEXT)}
    assert all((PAGE.parent / target).exists() for target in named)
    pages = "\n".join(page.read_text("utf-8") for page in (*PAGE.parent.glob("*.md"), PAGE.parents[1] / "README.md"))
    assert all(f"pictures/{path.name})" in pages for path in (PAGE.parent / "pictures").iterdir())
