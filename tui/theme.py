"""Colours: blue for what goes well, orange for what wants attention, grey for the rest.

All are of the 256 fixed terminal colours, so that tmux without COLORTERM shows the same ones.  Blue and orange
stay apart for every common kind of colour blindness; no meaning is carried by colour alone.
"""

from textual.theme import Theme

GOOD, ALERT, QUIET, STRONG = "$primary", "$warning", "$quiet", "bold $foreground"
"""Styles for parts of a text."""

MARKED = "$block-cursor-foreground on $block-cursor-background"
"""Style of the row under the cursor."""

DARK = Theme(
    name="caption-etl-dark",
    dark=True,
    primary="#5fafff",
    secondary="#5fafff",
    accent="#5fafff",
    warning="#ffaf5f",
    error="#ffaf5f",
    success="#5fafff",
    foreground="#d0d0d0",
    background="#121212",
    surface="#1c1c1c",
    panel="#262626",
    variables={
        "quiet": "#8a8a8a",
        "line": "#444444",
        "footer-key-foreground": "#5fafff",
        "footer-description-foreground": "#bcbcbc",
        "footer-background": "#1c1c1c",
        "block-cursor-background": "#005f87",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-text-style": "none",
    },
)

LIGHT = Theme(
    name="caption-etl-light",
    dark=False,
    primary="#005faf",
    secondary="#005faf",
    accent="#005faf",
    warning="#af5f00",
    error="#af5f00",
    success="#005faf",
    foreground="#262626",
    background="#ffffff",
    surface="#eeeeee",
    panel="#e4e4e4",
    variables={
        "quiet": "#6c6c6c",
        "line": "#bcbcbc",
        "footer-key-foreground": "#005faf",
        "footer-description-foreground": "#444444",
        "footer-background": "#eeeeee",
        "block-cursor-background": "#afd7ff",
        "block-cursor-foreground": "#000000",
        "block-cursor-text-style": "none",
    },
)

THEMES = {"dark": DARK, "light": LIGHT}
"""By the names that the configuration knows."""
