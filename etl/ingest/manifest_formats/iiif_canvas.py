"""What a canvas of a IIIF manifest says: its pictures, and its fields in words."""

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

from etl.ingest.manifest_formats.file import BadRow, json_line
from etl.net.iiif import Request, Service

_TAG = re.compile(r"<[^<>]*>")
_DATES = ("date", "datum", "datierung", "fecha", "data", "created", "issued", "published")
"""How the label of a date begins."""


def lines_of(manifest: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield a line for each canvas of a manifest.

    Its field ``iiif`` holds the canvas as it came, its ``pictures``, and on the first line the manifest without its
    canvases and their number, of which `etl.export.formats.iiif` makes the manifest again.
    """
    canvases, head = _taken_apart(manifest)
    known = _fields_of_manifest(manifest)
    if not canvases:
        yield BadRow.of({"manifest": known["manifest"], "title": known["title"]}, "the manifest has no canvases")
    for number, canvas in enumerate(canvases, 1):
        pictures = list(_pictures(canvas))
        inner: dict[str, Any] = {"canvas": canvas, "pictures": pictures}
        if number == 1:
            inner |= {"manifest": head, "canvases": len(canvases)}
        record = {name: value for name, value in _fields(canvas, number, known, pictures).items() if value}
        record["iiif"] = inner
        yield json_line(record) if pictures else BadRow.of(record, _why_none(canvas))


def kind_of(value: Any) -> str:
    """Return the type of an object, without the prefix that 2 gives it; empty for none."""
    kind = (value.get("type") or value.get("@type")) if isinstance(value, Mapping) else ""
    kind = next(iter(listed(kind)), "")
    return kind.rpartition(":")[2] if isinstance(kind, str) else ""


def identity(value: Any) -> str:
    """Return the id of an object; empty for none."""
    found = (value.get("id") or value.get("@id")) if isinstance(value, Mapping) else value
    return found if isinstance(found, str) else ""


def listed(value: Any) -> list[Any]:
    """Return what may be one or several as several."""
    return value if isinstance(value, list) else [] if value is None else [value]


def text_of(value: Any) -> str:
    """Return a value of IIIF as one text: of several languages the English one, else that of none, else the first."""
    texts: dict[str, list[str]] = {}
    for one in listed(value):
        if isinstance(one, Mapping) and "@value" in one:
            texts.setdefault(str(one.get("@language") or "none"), []).append(str(one["@value"]))
        elif isinstance(one, Mapping):
            for language, words in one.items():
                texts.setdefault(language, []).extend(word for word in listed(words) if isinstance(word, str))
        elif isinstance(one, str | int | float):
            texts.setdefault("none", []).append(str(one))
    names = [name for name in texts if texts[name]]
    english = next((name for name in names if name.partition("-")[0].lower() in ("en", "eng")), None)
    chosen = english or next((name for name in names if name in ("none", "@none")), next(iter(names), ""))
    return "; ".join(filter(None, map(_plain, texts.get(chosen, ()))))


def _plain(text: str) -> str:
    """Return a text without its markup, which it has, by the rule of IIIF, where it begins and ends with brackets."""
    text = text.strip()
    if text.startswith("<") and text.endswith(">"):
        text = html.unescape(_TAG.sub(" ", text))
    return " ".join(text.split())


def _taken_apart(manifest: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the canvases of a manifest, and the manifest without them."""
    if "sequences" not in manifest:
        return listed(manifest.get("items")), {**manifest, "items": None}
    sequences = [one for one in listed(manifest["sequences"]) if isinstance(one, Mapping)]
    at = next((n for n, one in enumerate(sequences) if one.get("canvases")), 0)
    canvases = listed(sequences[at].get("canvases")) if sequences else []
    emptied = [{**one, "canvases": None} if n == at else one for n, one in enumerate(sequences)]
    return canvases, {**manifest, "sequences": emptied}


def _fields_of_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    statement = manifest.get("requiredStatement")
    return {
        "manifest": identity(manifest),
        "title": text_of(manifest.get("label")),
        "summary": text_of(manifest.get("summary") or manifest.get("description")),
        "metadata": _metadata(manifest),
        "date": text_of(manifest.get("navDate"))[:10],
        "required_statement": text_of(
            statement.get("value") if isinstance(statement, Mapping) else manifest.get("attribution")
        ),
        "rights": text_of(manifest.get("rights") or manifest.get("license")),
    }


def _fields(canvas: Any, number: int, known: Mapping[str, Any], pictures: list[dict[str, Any]]) -> dict[str, Any]:
    own: Mapping[str, Any] = canvas if isinstance(canvas, Mapping) else {}
    metadata = {**known["metadata"], **_metadata(own)}
    dates = (value for label, value in metadata.items() if label.casefold().startswith(_DATES))
    urls = [picture["url"] for picture in pictures]
    return {
        "id": identity(own),
        "url": urls[0] if len(urls) == 1 else None,
        "images": urls if len(urls) > 1 else None,
        "title": known["title"],
        "label": text_of(own.get("label")),
        "canvas": number,
        "date": next(dates, "") or text_of(own.get("navDate"))[:10] or known["date"],
        "summary": text_of(own.get("summary") or own.get("description")) or known["summary"],
        "metadata": metadata,
        "required_statement": known["required_statement"],
        "rights": text_of(own.get("rights") or own.get("license")) or known["rights"],
        "manifest": known["manifest"],
    }


def _metadata(value: Mapping[str, Any]) -> dict[str, str]:
    """Return labels with their values; those that come again have all of them."""
    found: dict[str, list[str]] = {}
    for pair in listed(value.get("metadata")):
        if isinstance(pair, Mapping) and (label := text_of(pair.get("label"))):
            found.setdefault(label, []).append(text_of(pair.get("value")))
    return {label: "; ".join(filter(None, values)) for label, values in found.items()}


def _pictures(canvas: Any) -> Iterator[dict[str, Any]]:
    """Yield what is painted on a canvas: the ``url`` of each picture, its ``target`` and its ``service``."""
    for annotation in _annotations(canvas):
        target = annotation.get("target") or annotation.get("on")
        for body in listed(annotation.get("body") or annotation.get("resource")):
            if (picture := _picture(body)) is not None:
                where = target if isinstance(target, str) and target.partition("#")[0] == identity(canvas) else None
                yield {**picture, "target": where or identity(canvas)}


def _annotations(canvas: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the annotations that paint a canvas."""
    if not isinstance(canvas, Mapping):
        return
    pages = [one for one in listed(canvas.get("items")) if isinstance(one, Mapping)]
    for one in (*(inner for page in pages for inner in listed(page.get("items"))), *listed(canvas.get("images"))):
        if isinstance(one, Mapping) and one.get("motivation") in (None, "painting", "sc:painting", ["painting"]):
            yield one


def _picture(body: Any) -> dict[str, Any] | None:
    """Return the picture of an annotation's body; of several to choose from the first, which is the default."""
    if isinstance(body, str):
        return {"url": body}
    kind = kind_of(body)
    if kind == "Choice":
        choices = (*listed(body.get("default")), *listed(body.get("items")), *listed(body.get("item")))
        return next(filter(None, map(_picture, choices)), None)
    if kind == "SpecificResource":
        inner = _picture(body.get("source") or body.get("full"))
        return inner and _part(inner, body)
    if not isinstance(body, Mapping):
        return None
    services = [one for one in listed(body.get("service")) if Service.of(one) is not None]
    if not (kind == "Image" or services or str(body.get("format")).startswith("image/")):
        return None
    size = {name: body[name] for name in ("width", "height") if body.get(name)}
    service = {**size, **services[0]} if services else None
    url = identity(body)
    if not url and (known := Service.of(service)):
        request = known.whole()
        url = request.url(request.size)
    return {"url": url, **({"service": service} if service else {})} if url else None


def _part(picture: dict[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a picture that a selector means, where a service can cut it out."""
    selector = next((one for one in listed(body.get("selector")) if isinstance(one, Mapping)), {})
    service = Service.of(picture.get("service"))
    region = selector.get("region")
    if not service or not isinstance(region, str):
        return picture
    whole = service.whole()
    turn = selector.get("rotation") or "0"
    request = Request.of(f"{whole.base}/{region}/{whole.size}/{turn}/{whole.rest.partition('/')[2]}")
    return {**picture, "url": request.url(request.size)} if request else picture


def _why_none(canvas: Any) -> str:
    """Return why a canvas has no picture, in words."""
    if not isinstance(canvas, Mapping):
        return "no canvas"
    bodies = (body for one in _annotations(canvas) for body in listed(one.get("body") or one.get("resource")))
    kinds = sorted({kind for body in bodies if (kind := kind_of(body))})
    elsewhere = [page for page in listed(canvas.get("items")) if isinstance(page, Mapping) and "items" not in page]
    if elsewhere and not kinds:
        return (
            f"the canvas has no picture here: what is painted on it stands elsewhere, at {identity(elsewhere[0])[:200]}"
        )
    return f"the canvas has no picture{f', only {chr(32).join(kinds)[:80]}' if kinds else ''}"
