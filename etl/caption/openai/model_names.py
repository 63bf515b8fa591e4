"""What a model is called: by whom it is asked for, in the list of models, and in the answers; pure."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

UNSPECIFIED = "unspecified"
"""The revision of a model when its server tells nothing of it."""

_VERSION = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{6}|\d{4}|\d{3})$")
"""A version behind a name: ``gpt-4o-2024-08-06``, ``mistral-large-2411``, ``gemini-1.5-pro-002``."""

_TAG = re.compile(r"@[^/]*$|[:-]latest$")
"""What follows a name and says which version of the same model is meant."""


def is_same(asked: str, answered: str, listed: Mapping[str, Any]) -> bool:
    """Return whether an answer's name means the model asked for; ``listed`` is its entry in the list of models.

    It does when there is none, when it is the name itself, or one that the list gives as another name of it (``root``,
    ``canonical_slug``, ``aliases``); behind or before a path, an owner's name or a provider's; with another version.
    """
    return not answered or any(_alike(_bare(name), _bare(answered)) for name in (asked, *_other_names(listed)))


def _other_names(listed: Mapping[str, Any]) -> Iterator[str]:
    aliases = listed.get("aliases")
    for name in (listed.get("root"), listed.get("canonical_slug"), *(aliases if isinstance(aliases, list) else [])):
        if isinstance(name, str) and name:
            yield name


def _bare(name: str) -> str:
    return _TAG.sub("", name.strip().rstrip("/").lower())


def _alike(asked: str, answered: str) -> bool:
    forms = (answered, _VERSION.sub("", answered))
    return any(asked == form or asked.endswith(f"/{form}") or form.endswith(f"/{asked}") for form in forms if form)


def revision(model: str, answered: str, root: Any) -> str:
    """Return what the server tells of the version behind a name: a dated name, a revision, or where it was loaded from.

    Of a path only the last part counts, which in the hub's cache is the commit; the rest is that machine's.
    """
    if answered.startswith(f"{model}@"):
        return answered.removeprefix(f"{model}@") or UNSPECIFIED
    if answered and answered != model:
        return _last_part(answered)
    if isinstance(root, str) and root and root != model:
        return _last_part(root)
    return UNSPECIFIED


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name
