"""IIIF manifests and collections as archives write them: a small one of each kind, and its records."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.iiif_server import ImageArchive, Served
from support.states import settings_for

from etl.domain.statuses import RecordState
from etl.errors import ManifestError
from etl.ingest.manifest import Manifest
from etl.ingest.manifest_formats import iiif as module
from etl.ingest.options import IngestOptions
from etl.ingest.record_parser import RecordParser
from etl.net.documents import Documents
from etl.settings import Settings
from etl.state.records import NewRecord

H = "http://a.example"
V2, V3 = (f"http://iiif.io/api/presentation/{version}/context.json" for version in (2, 3))
SERVICE3 = {"id": f"{H}/iiif/1", "type": "ImageService3", "profile": "level2"}
SERVICE2 = {"@context": "http://iiif.io/api/image/2/context.json", "@id": f"{H}/iiif/1", "profile": "level1.json"}


class Given(NamedTuple):
    """A document, the pictures of its records by key (``None`` for a bad one), and fields of the first."""

    document: Any
    expected: "Sequence[tuple[str | None, str | None]]"
    fields: dict[str, Any] = {}  # noqa: RUF012 - never changed


def image(name: str = "1", **more: Any) -> dict[str, Any]:
    return {"id": f"{H}/{name}.jpg", "type": "Image", "format": "image/jpeg", **more}


def canvas(name: str, *bodies: Any, **more: Any) -> dict[str, Any]:
    painted = [
        {"type": "Annotation", "motivation": "painting", "body": body, "target": f"{H}/c/{name}"} for body in bodies
    ]
    page = {"id": f"{H}/c/{name}/page", "type": "AnnotationPage", "items": painted}
    return {"id": f"{H}/c/{name}", "type": "Canvas", "items": [page], **more}


def manifest(*canvases: Any, **more: Any) -> dict[str, Any]:
    return {
        "@context": V3, "id": f"{H}/m", "type": "Manifest", "label": {"en": ["Album"]}, **more, "items": list(canvases)
    }  # fmt: skip


def canvas2(name: str, resource: Any, **more: Any) -> dict[str, Any]:
    painted = {"@type": "oa:Annotation", "motivation": "sc:painting", "resource": resource, "on": f"{H}/c/{name}"}
    return {"@id": f"{H}/c/{name}", "@type": "sc:Canvas", "label": f"p. {name}", "images": [painted], **more}


def manifest2(*canvases: Any, **more: Any) -> dict[str, Any]:
    sequence = {"@type": "sc:Sequence", "canvases": list(canvases)}
    return {"@context": V2, "@id": f"{H}/m", "@type": "sc:Manifest", "label": "Album", **more, "sequences": [sequence]}


IMAGE2 = {"@id": f"{H}/1.jpg", "@type": "dctypes:Image", "width": 3000, "height": 2000, "service": SERVICE2}
ONE = [(f"{H}/c/1", f"{H}/1.jpg")]
TWO = [*ONE, (f"{H}/c/2", f"{H}/2.jpg")]

FORMS = {
    "3, a book": Given(
        manifest(canvas("1", image(), label={"none": ["1r"]}), canvas("2", image("2"))),
        TWO,
        {"title": "Album", "label": "1r", "canvas": 1, "manifest": f"{H}/m"},
    ),
    "3, languages, metadata, rights": Given(
        manifest(
            canvas("1", image(), metadata=[{"label": {"fr": ["Page"]}, "value": {"fr": ["une"]}}]),
            label={"fr": ["Fleurs"], "en-GB": ["Flowers", "of spring"]},
            summary={"ja": ["花"], "none": ["plain"]},
            metadata=[
                {"label": {"en": ["Date"]}, "value": {"none": ["1932"]}},
                {"label": {"en": ["By"]}, "value": {"en": ["<a href='x'>Ann</a>"]}},
                {"label": {"en": ["By"]}, "value": {"en": ["Bo & Co"]}},
            ],
            rights="http://creativecommons.org/publicdomain/mark/1.0/",
            requiredStatement={"label": {"en": ["Held by"]}, "value": {"en": ["The Archive"]}},
        ),
        ONE,
        {
            "title": "Flowers; of spring",
            "summary": "plain",
            "date": "1932",
            "metadata": {"Date": "1932", "By": "Ann; Bo & Co", "Page": "une"},
            "rights": "http://creativecommons.org/publicdomain/mark/1.0/",
            "required_statement": "The Archive",
        },
    ),
    "3, a choice": Given(manifest(canvas("1", {"type": "Choice", "items": [image(), image("uv")]})), ONE),
    "3, several pictures on a canvas": Given(
        manifest(canvas("1", image(), image("2"))), [*ONE, (f"{H}/c/1#2", f"{H}/2.jpg")]
    ),
    "3, not rectangular, cut out by a selector": Given(
        manifest(
            canvas(
                "1",
                {
                    "type": "SpecificResource",
                    "source": image(service=[SERVICE3]),
                    "selector": {"type": "ImageApiSelector", "region": "10,20,300,400"},
                },
            )
        ),
        [(f"{H}/c/1", f"{H}/iiif/1/10,20,300,400/max/0/default.jpg")],
    ),
    "3, a service without a picture's URL": Given(
        manifest(canvas("1", {"type": "Image", "service": [SERVICE3]})),
        [(f"{H}/c/1", f"{H}/iiif/1/full/max/0/default.jpg")],
    ),
    "3, sound, nothing, and no canvas": Given(
        manifest(canvas("1", image()), canvas("2", {"id": "x", "type": "Sound"}), canvas("3"), None),
        [*ONE, (None, None), (None, None), (None, None)],
    ),
    "3, thumbnails, ranges and notes": Given(
        manifest(
            canvas(
                "1", image(), thumbnail=[image("t")], annotations=[{"type": "AnnotationPage", "items": [{"body": {}}]}]
            ),
            thumbnail=[image("t")],
            structures=[{"type": "Range", "items": [{"id": f"{H}/c/1", "type": "Canvas"}]}],
            placeholderCanvas=canvas("0", image("0")),
        ),
        ONE,
    ),
    "3, a collection of whole manifests": Given(
        {
            "@context": [V3],
            "type": "Collection",
            "items": [manifest(canvas("1", image())), {**manifest(canvas("2", image("2"))), "id": f"{H}/m2"}],
        },
        TWO,
    ),
    "3, one on each line": Given(
        json.dumps(manifest(canvas("1", image())))
        + "\n"
        + json.dumps({**manifest(canvas("2", image("2"))), "id": f"{H}/m2"}),
        TWO,
    ),
    "2, a book": Given(
        manifest2(
            canvas2("1", IMAGE2),
            attribution=["A", {"@value": "B", "@language": "en"}],
            license=f"{H}/l",
            description="<p>Old &amp; new</p>",
            metadata=[{"label": [{"@value": "Datum", "@language": "de"}], "value": 1900}],
        ),
        ONE,
        {
            "label": "p. 1",
            "required_statement": "B",
            "rights": f"{H}/l",
            "summary": "Old & new",
            "date": "1900",
            "metadata": {"Datum": "1900"},
        },
    ),
    "2, a choice": Given(
        manifest2(canvas2("1", {"@type": "oa:Choice", "default": IMAGE2, "item": [{"@id": f"{H}/uv.jpg"}]})), ONE
    ),
    "2, a part": Given(
        manifest2(
            canvas2(
                "1",
                {
                    "@type": "oa:SpecificResource",
                    "full": IMAGE2,
                    "selector": {"@type": "iiif:ImageApiSelector", "region": "0,0,9,9"},
                },
            )
        ),
        [(f"{H}/c/1", f"{H}/iiif/1/0,0,9,9/full/0/default.jpg")],
    ),
    "2, several sequences": Given(
        {
            **manifest2(),
            "sequences": [
                {"@id": f"{H}/s"},
                {"@type": "sc:Sequence", "canvases": [canvas2("1", {**IMAGE2, "@type": None})]},
            ],
        },
        ONE,
    ),
    "2, a collection": Given(
        {"@context": V2, "@type": "sc:Collection", "collections": [], "manifests": [manifest2(canvas2("1", IMAGE2))]},
        ONE,
    ),
    "2.1, members, twice the same": Given(
        {"@context": V2, "@type": "sc:Collection", "members": [manifest2(canvas2("1", IMAGE2))] * 2}, ONE
    ),
    "no canvases": Given(manifest(), [(None, None)]),
    "a page of annotations that is only named": Given(
        manifest({"id": f"{H}/c/1", "type": "Canvas", "items": [{"id": f"{H}/page", "type": "AnnotationPage"}]}),
        [(None, None)],
    ),
    "collections within each other": Given(
        {
            "@context": V3,
            "type": "Collection",
            "items": [{"type": "Collection", "items": [manifest(canvas("1", image()))]}],
        },
        ONE,
    ),
    "a manifest elsewhere, that nothing may be asked for": Given(
        {"@context": V3, "type": "Collection", "items": [{"id": f"{H}/m", "type": "Manifest"}]}, [(None, None)]
    ),
}


def found(source: str, settings: Settings | None = None) -> list[NewRecord]:
    """Return the records of a manifest; where there are settings, what it names elsewhere is asked for."""
    read = Manifest(source)
    parser = RecordParser(IngestOptions(), read)
    with read.at_hand(settings) if settings else nullcontext():
        return [one for n, line in enumerate(read.lines()) for one in parser.parse(line, n + 1, n)]


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path: Path, form: str) -> None:
    """Each canvas is a record under its id, with its picture and what is said of it; a bad one says why."""
    document, expected, fields = FORMS[form]
    path = tmp_path / "manifest.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document, indent=1), encoding="utf-8")
    records = found(str(path))
    assert [(record.key if record.url else None, record.url) for record in records] == expected
    assert all(record.error and len(record.error) < 200 for record in records if record.url is None)
    assert f"stands elsewhere, at {H}/page" in str(records[0].error) or "only named" not in form
    said = json.loads(records[0].line)
    assert {name: said.get(name) for name in fields} == fields


@pytest.mark.parametrize(
    "text", ['{"id": 1, "url": "http://a.example/1.jpg", "@context": {"x": "http://iiif.io/api/presentation"}}',
             '{"items": [{"@context": "http://iiif.io/api/presentation/3/context.json", "url": "http://a.example/1.jpg"}]}'],
)  # fmt: skip
def test_what_only_names_iiif_is_read_as_before(tmp_path: Path, text: str) -> None:
    """A list of records that has something of IIIF inside is no manifest of it."""
    path = tmp_path / "list.json"
    path.write_text(text)
    assert [record.url for record in found(str(path))] == [f"{H}/1.jpg"]


def test_a_manifest_that_is_cut_short(tmp_path: Path) -> None:
    """One line says where, and nothing is read of it."""
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest(canvas("1", image())), indent=1)[:-20])
    with pytest.raises(ManifestError, match=r"manifest\.json, line \d+: cut short, or not JSON"):
        found(str(path))


def test_collections_are_followed(tmp_path: Path) -> None:
    """What a collection names is asked for once; what cannot be had is a bad record with its reason."""
    with ImageArchive() as archive:

        def named(name: str, kind: str = "Manifest") -> dict[str, Any]:
            return {"id": f"{archive.base}/{name}", "type": kind, "label": {"en": [name]}}

        archive.documents = {
            "/top.json": {"@context": V3, "id": f"{archive.base}/top.json", "type": "Collection",
                          "items": [named("m1"), named("deep", "Collection"), *map(named, ("gone", "m1", "html"))]},
            "/deep": {"type": "Collection", "items": [named("m2"), named("top.json", "Collection")]},
            "/m1": {**manifest(canvas("1", image())), "id": f"{archive.base}/m1"},
            "/m2": {**manifest2(canvas2("2", {**IMAGE2, "@id": "/2.jpg"})), "@id": f"{archive.base}/m2"},
            "/html": b"<html>",
        }  # fmt: skip
        settings = settings_for(tmp_path / "state", allow_host=("127.0.0.1",))
        records = found(f"{archive.base}/top.json", settings)
        assert [record.url for record in records] == [f"{H}/1.jpg", f"{archive.base}/2.jpg", None, None]
        assert all(record.state is RecordState.INVALID for record in records[2:])
        assert "HTTP 404" in str(records[2].error)
        assert "not JSON" in str(records[3].error)
        assert sorted(archive.asked) == ["/deep", "/gone", "/html", "/m1", "/m2", "/top.json"]
        listed = tmp_path / "manifests.txt"
        archive.documents["/1/manifest"] = archive.documents["/m1"]
        listed.write_text(f"# mine\n{archive.base}/1/manifest\n\n{archive.base}/m1\n{archive.base}/gone")
        records = found(str(listed), settings)
        assert [record.url for record in records] == [f"{H}/1.jpg", f"{H}/1.jpg", None]
        archive.asked.clear()
        archive.documents["/robots.txt"] = b"User-agent: *\nDisallow: /m1"
        records = found(f"{archive.base}/top.json", replace(settings, respect_robots=True))
        assert [record.url for record in records] == [None, f"{archive.base}/2.jpg", None, None]
        assert "forbidden by" in str(records[0].error)
        assert archive.asked.count("/robots.txt") == 1
        # It counts where a redirect leads, too; asking for it must not wait for who waits for it.
        archive.documents["/robots.txt"] = b"User-agent: *\nDisallow: /*/info.json"
        archive.documents["/top.json"]["items"] = [named("iiif/1")]
        archive.pictures["/iiif/1"] = Served()
        records = found(f"{archive.base}/top.json", replace(settings, respect_robots=True, concurrency=1))
        assert "forbidden by" in str(records[0].error)
        assert "/iiif/1/info.json" not in archive.asked
        with pytest.raises(ManifestError, match="--allow-host"):
            found(f"{archive.base}/top.json", settings_for(tmp_path / "state"))
        with pytest.raises(ManifestError, match="HTTP 404"):
            found(f"{archive.base}/none", settings)


def test_collections_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that goes on for ever is left at a depth and a number, and no file of this machine is read for it."""
    asked: list[str] = []

    def read(_: object, url: str, most: int) -> bytes:
        asked.append(url)
        assert most == module.MAX_BYTES
        names = [f"{url}/a", "/etc/passwd", "file:///etc/passwd"]
        return json.dumps({"@context": V3, "type": "Collection", "items": names}).encode()

    monkeypatch.setattr(Documents, "read", read)
    path = tmp_path / "top.json"
    path.write_text(read(None, H, module.MAX_BYTES).decode())
    records = found(str(path), settings_for(tmp_path / "state"))
    assert len(asked) == module.MAX_DEPTH + 1
    assert {record.url for record in records} == {None}
    assert "deep" in str(records[0].error)
    monkeypatch.setattr(module, "MAX_DOCUMENTS", 3)
    assert "more than 3 manifests" in str(found(str(path), settings_for(tmp_path / "state"))[0].error)
