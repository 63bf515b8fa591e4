"""Captions for catalogues and image banks: Dublin Core, and XMP beside pictures."""

import csv
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.made_state import MadeState

from etl.export.lines import ExportOptions
from etl.run.pipeline import export_manifest
from etl.state.database import DATABASE_NAME

HOSTILE = '</rdf:li><!-- ]]> & <x a="1">\x00\x1b[31m\u0085\ufffe "q" \'&amp;\' é\u2028\U0001f600'
SAFE = '</rdf:li><!-- ]]> & <x a="1">[31m "q" \'&amp;\' é\u2028\U0001f600'
RECORDS = [
    {"id": "a", "url": "http://h/1.png", "dc:title": "Rue", "title": "no", "Keywords": ["tram", "snow"], "Date": 1911,
     "description": "By hand.", "rights": {"uri": "cc"}, "DCTERMS.isPartOf": "Album"},
    {"id": "b", "url": "http://h/2.png", "attributes_map": {"Titre": "=Vue"}, "description": "Mine."},
]  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> MadeState:
    """Return a state with these records, the first of them captioned."""
    made = MadeState(tmp_path)
    made.ingest("".join(json.dumps(record) + "\n" for record in RECORDS).encode())
    made.finish({"a": "A tram."}, model="some/llava&<", revision='"1"')
    return made


def test_dublin_core(made: MadeState) -> None:
    """Elements are found by many names; nobody takes the machine's description for that of people."""
    data, _ = made.export("out.csv", format="dc")
    first, second = csv.DictReader(io.StringIO(data.decode(), newline=""))
    told = first.pop("dcterms:provenance")
    assert told.startswith('dc:description was written by a machine: some/llava&<@"1", 20')
    assert {name: value for name, value in first.items() if value} == {
        "dc:identifier": "a", "dc:title": "Rue", "dc:subject": "tram|snow", "dc:date": "1911",
        "dc:format": "image/jpeg", "dc:description": "A tram.", "dcterms:abstract": "By hand.", "dc:type": "StillImage",
        "dc:source": "http://h/1.png", "dc:rights": '{"uri": "cc"}', "dc:relation": "Album",
    }  # fmt: skip
    assert (second["dc:title"], second["dc:description"]) == ("'=Vue", "Mine.")
    assert second["dcterms:abstract"] == second["dcterms:provenance"] == ""


def test_no_machine_has_written_what_came_from_a_file(made: MadeState) -> None:
    """Neither as Dublin Core nor in XMP is a model named for it."""
    with closing(sqlite3.connect(made.settings.state / DATABASE_NAME)) as database, database:
        database.execute("UPDATE captions SET finish_reason = 'file'")
    first = next(csv.DictReader(io.StringIO(made.export("out.csv", format="dc")[0].decode(), newline="")))
    assert first["dcterms:provenance"] == "dc:description was taken from a file"
    export_manifest(made.settings, str(made.directory / "out"), ExportOptions(format="xmp"))
    packet = (made.directory / "out" / "1.xmp").read_text()
    ElementTree.fromstring(packet)
    assert "CaptionWriter" not in packet and "llava" not in packet and "A tram." in packet


NAMESPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "iptc": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
}
SENTENCE = "A long street with a tram and many people in it."
XMP = [
    ("A tram.\n\nIn  snow. ", "A tram.\n\nIn  snow.", "A tram. In snow."),
    (HOSTILE, SAFE, SAFE.replace("\u2028", " ")),
    (" ".join([SENTENCE] * 9), " ".join([SENTENCE] * 9), " ".join([SENTENCE] * 5)),
    ("word " * 99, "word " * 98 + "word", "word " * 49 + "word…"),
    ("x" * 300, "x" * 300, "x" * 249 + "…"),
]
"""Captions, with the description and the short form that come of them."""


def test_xmp(tmp_path: Path) -> None:
    """It is XML with the caption, a short form of 250 characters, and the model as writer, whatever they hold."""
    made = MadeState(tmp_path)
    made.ingest("".join(f'{{"id": "k{n}", "url": "http://h.example/{n}.jpg"}}\n' for n in range(len(XMP))).encode())
    captions = {f"k{n}": caption for n, (caption, *_) in enumerate(XMP)}
    made.finish(captions, model="some/llava&<", revision='"1"')
    options, out = ExportOptions(format="xmp"), tmp_path / "out"
    export_manifest(made.settings, str(out), options)
    for number, (_, description, alternative) in enumerate(XMP):
        root = ElementTree.fromstring((out / f"{number}.xmp").read_bytes())
        texts = {
            name: root.findtext(f".//{name}/rdf:Alt/rdf:li", namespaces=NAMESPACES)
            for name in ("dc:description", "iptc:AltTextAccessibility", "iptc:ExtDescrAccessibility")
        }
        extended = description if len(description) > 250 else None
        assert list(texts.values()) == [description, alternative, extended] and len(alternative) <= 250
        about = root.find(".//rdf:Description", NAMESPACES)
        assert about is not None and 'some/llava&<@"1" (a machine)' in about.attrib.values()
    assert export_manifest(made.settings, str(out), options).written == 0
    (out / "0.xmp").write_text('<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 6"/>')
    assert export_manifest(made.settings, str(out), options).foreign == 1
    assert "XMP Core 6" in (out / "0.xmp").read_text()
