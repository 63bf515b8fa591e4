"""IIIF out: the manifests come back with what was written about their canvases, and nothing else changed."""

import contextlib
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support.made_state import MadeState

from etl.errors import ConfigError

H = "http://a.example"


def canvas(name: str, *pictures: str, **more: Any) -> dict[str, Any]:
    painted = [
        {"type": "Annotation", "motivation": "painting", "target": f"{H}/{name}#xywh={n},0,9,9" if n else f"{H}/{name}",
         "body": {"id": f"{H}/{picture}.jpg", "type": "Image", "format": "image/jpeg"}}
        for n, picture in enumerate(pictures)
    ]  # fmt: skip
    page = {"id": f"{H}/{name}/p", "type": "AnnotationPage", "items": painted}
    return {"id": f"{H}/{name}", "type": "Canvas", "height": 9, "width": 9, **more, "items": [page]}


MANIFEST = {
    "@context": "http://iiif.io/api/presentation/3/context.json",
    "id": f"{H}/m.json",
    "type": "Manifest",
    "label": {"fr": ["Été 😀"]},
    "items": [
        canvas("c1", "1"),
        canvas("c2", "2", "3", summary={"en": ["theirs"]}, metadata=[{"label": {"en": ["x"]}, "value": {"en": ["y"]}}]),
        canvas("c3"),
        canvas("c4", "4"),
    ],
    "structures": [{"id": f"{H}/r", "type": "Range", "items": [{"id": f"{H}/c1", "type": "Canvas"}]}],
}
IMAGE2 = {"@id": f"{H}/5.jpg", "@type": "dctypes:Image"}
MANIFEST2 = {
    "@context": "http://iiif.io/api/presentation/2/context.json",
    "@id": f"{H}/m2.json",
    "@type": "sc:Manifest",
    "label": "Two",
    "sequences": [
        {"@type": "sc:Sequence", "canvases": []},
        {
            "@type": "sc:Sequence",
            "viewingDirection": "left-to-right",
            "canvases": [
                {"@id": f"{H}/c5", "@type": "sc:Canvas", "label": "5", "images": [
                    {"@type": "oa:Annotation", "motivation": "sc:painting", "resource": IMAGE2, "on": f"{H}/c5"}]},
            ],
        },
    ],
}  # fmt: skip
TEXTS = {f"{H}/c1": "One\nflower.", f"{H}/c2": "A left.", f"{H}/c2#2": "A right.", f"{H}/c5": "Five."}


@pytest.fixture
def made(tmp_path: Path) -> MadeState:
    """Return a state of two manifests, captioned but for one canvas."""
    made = MadeState(tmp_path)
    made.ingest((json.dumps(MANIFEST) + "\n" + json.dumps(MANIFEST2)).encode(), "manifest.json")
    made.finish(TEXTS, dead_sources={f"{H}/c4": "http_404"})
    return made


def read(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


def without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


def test_the_manifests_come_back_with_captions(made: MadeState) -> None:
    """Captions describe canvases, or the parts that pictures have, with who wrote them; the rest is as it came."""
    data, summary = made.export("out.json", format="iiif")
    assert (summary.format, summary.captioned, summary.failed) == ("iiif", 4, 1)
    three, two = read(data)
    assert without(three, "items") == without(MANIFEST, "items")
    first, second, *others = three["items"]
    assert others == MANIFEST["items"][2:]  # type: ignore[index]
    assert without(first, "summary", "metadata", "annotations") == MANIFEST["items"][0]  # type: ignore[index]
    assert first["summary"] == {"none": ["One\nflower."]} and second["summary"] == {"en": ["theirs"]}
    [page] = first["annotations"]
    [annotation] = page["items"]
    day = annotation["created"]
    assert first["metadata"][0]["value"] == {"none": [f"some/llava@0123abcd, {day[:10]}"]}
    assert annotation == {
        "id": f"{H}/c1/vlm/1", "type": "Annotation", "motivation": "describing", "created": day,
        "creator": {"type": "Software", "name": "some/llava@0123abcd"}, "target": f"{H}/c1",
        "body": {"type": "TextualBody", "value": "One\nflower.", "format": "text/plain"},
    }  # fmt: skip
    assert [(one["body"]["value"], one["target"]) for one in second["annotations"][0]["items"]] == [
        ("A left.", f"{H}/c2"),
        ("A right.", f"{H}/c2#xywh=1,0,9,9"),
    ]
    assert [len(two["sequences"]), two["sequences"][0]["canvases"]] == [2, []]
    [old] = two["sequences"][1]["canvases"]
    assert old["description"] == "Five." and old["metadata"][0]["label"] == "Description by a machine"
    [listed] = old["otherContent"]
    assert listed["resources"][0]["resource"]["chars"] == "Five." and listed["resources"][0]["on"] == f"{H}/c5"


def test_an_export_is_read_and_written_again(made: MadeState, tmp_path: Path) -> None:
    """What was exported is a list of the same pictures, and its captions are replaced, not doubled."""
    data, _ = made.export("out.json", format="iiif")
    again = MadeState(tmp_path / "again")
    again.directory.mkdir()
    again.ingest(data, "manifest.json")
    again.finish(TEXTS, dead_sources={f"{H}/c4": "http_404"}, model="other/model")
    twice, _ = again.export("twice.json", format="iiif")
    assert b"some/llava" not in twice

    def undated(data: bytes) -> bytes:
        return re.sub(rb"20\d\d-[-\d]{5}(T[\d:.]+Z)?", b"DAY", data)

    assert undated(twice.replace(b"other/model", b"some/llava")) == undated(data)


def test_captions_that_were_there_are_no_machine_s(made: MadeState) -> None:
    """What the manifest has said itself is not given back as a model's description."""
    with contextlib.closing(sqlite3.connect(made.settings.state / "state.db")) as connection, connection:
        connection.execute("UPDATE captions SET finish_reason = 'file' WHERE text LIKE 'One%'")
    first, second, *_ = read(made.export("out.json", format="iiif")[0])[0]["items"]
    assert first == MANIFEST["items"][0] and "annotations" in second  # type: ignore[index]


def test_what_has_no_manifest_is_refused(made: MadeState) -> None:
    """Records of another list, and an export of a part of the canvases, end with one line that says what to do."""
    with pytest.raises(ConfigError, match=r"2 of its 4 canvases in this export; leave out --only-captioned"):
        made.export("out.json", format="iiif", only_captioned=True)
    made.ingest(b'{"id": "k", "url": "http://a.example/k.jpg"}\n', "list.jsonl")
    with pytest.raises(ConfigError, match=r"record 'k' came from no manifest of IIIF.*choose another --format"):
        made.export("out.json", format="iiif")
    assert not (made.directory / "out.json").exists()


@pytest.mark.soak
def test_a_public_library_reads_it(made: MadeState) -> None:
    """iiif-prezi3 (to be installed with --no-deps, as it holds Pillow back) finds the manifest of 3 valid."""
    prezi3 = pytest.importorskip("iiif_prezi3")
    data, _ = made.export("out.json", format="iiif")
    read_again = prezi3.Manifest(**read(data)[0])
    assert read_again.items[0].annotations[0].items[0].body.value == "One\nflower."
