"""Manifests as hypothesis draws them: their lines, and the edits that people make."""

import json
from collections.abc import Sequence

from hypothesis import strategies as st
from support.plain_state import Line

TEMPLATES = ["Describe {{ title }}.", "What is it?"]
TITLES = ["Street", "Church"]
HOSTS = ["a.example", "b.example"]

line_specs = st.lists(
    st.tuples(
        st.sampled_from("1234"), st.sampled_from([f"http://{host}/{n}.jpg" for host in HOSTS for n in range(2)]),
        st.sampled_from(TITLES), st.sampled_from(["good"] * 8 + ["no image", "no json"]),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


def lines_of(name: str, specs: list[tuple[str, ...]], template: int, line_end: bool) -> list[Line]:
    """Return the lines of a manifest; the last one with a line end or without."""
    lines = []
    for n, (number, url, title, kind) in enumerate(specs, 1):
        end = b"\n" if line_end or n < len(specs) else b""
        key = f"{name}-{number}"
        if kind == "no json":
            lines.append(Line(b'{"id": ' + key.encode() + end, None, None, None, "invalid_json"))
            continue
        record = {"id": key, "title": title} | {"url": url if kind == "good" else ""}
        data = json.dumps(record).encode() + end
        prompt = [f"Describe {title}.", TEMPLATES[1]][template]
        good = kind == "good"
        lines.append(Line(data, key, url if good else None, prompt, None if good else "no_image_field"))
    return lines


def edited(lines: Sequence[Line], how: str) -> list[Line]:
    """Return the lines as they are, in the other order, without the first, or each twice."""
    ended = [Line(one.data.rstrip(b"\n") + b"\n", one.key, one.url, one.prompt, one.error) for one in lines]
    changed = {"reverse": ended[::-1], "shorter": ended[1:] or ended, "twice": ended * 2}
    return changed.get(how) or list(lines)
