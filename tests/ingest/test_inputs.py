"""Lists of pictures as public exporters write them: a small one of each, and what becomes of it."""

import base64
import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from PIL import Image
from support.states import query, settings_for
from support.workbench import Workbench, encoded

from etl import archives
from etl.compression import zstd
from etl.data_urls import data_url
from etl.domain.views import StageSummary
from etl.errors import ManifestError
from etl.export.stage import ExportOptions, export
from etl.extras import pyarrow
from etl.ingest.manifest import Manifest
from etl.ingest.manifest_formats.directory import MAX_SIDECAR
from etl.ingest.manifest_formats.file import BadRow
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.maintenance.merge import merge
from etl.maintenance.split import split
from etl.state.checks import deep_problems
from etl.state.read.reader import Reader
from etl.state.store import Store

A, B, C = (f"http://a.example/{name}.jpg" for name in "abc")
DATA = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
AVIF = base64.b64encode(b"\0\0\0\x1cftypavif" + bytes(range(90))).decode()
GIF = base64.b64encode(b"GIF89a" + bytes(range(90))).decode()


class Given(NamedTuple):
    """A file, and its records: keys with URLs, ``...`` for a key that is its line; or words of the refusal."""

    name: str
    content: bytes | str
    expected: "Sequence[tuple[Any, str | None]] | str"
    options: Mapping[str, Any] = MappingProxyType({})


def rows(separator: str, *lines: str, end: str = "\r\n") -> str:
    return "".join(line.replace("^", separator) + end for line in lines)


def dumped(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False)


def zipped(files: Mapping[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return held.getvalue()


def tarred(files: "Mapping[str, bytes | str]") -> bytes:
    """Return a tar archive; a text is what a symbolic link leads to, of ``name*`` what a hard link does."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name.rstrip("*"))
            if isinstance(content, str):
                info.type, info.linkname = (tarfile.LNKTYPE if "*" in name else tarfile.SYMTYPE), content
                content = b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return held.getvalue()


TABLE = rows("^", "id^Título^url", '1^"Rue ^ ""du"" Fort"^' + A, "2^É^" + B)
AB = [("1", A), ("2", B)]
LINES = [(..., A), (..., B)]
PICTURES = {"s/1.jpg": b"1", "s/2.PNG": b"2"}
UNSAID = zipped({"s/xyxx.jpg": b"1"}).replace(b"xyxx", "é\\".encode() + b"x")
SHARD = {
    "s/2.txt": b"two", "s/1.jpg": b"", "s/1.json": b'{"url": "http://a.example/x"}', "s/2.jpg": b"", "s/1.txt": b"one",
}  # fmt: skip
DAMAGED = bytearray(tarred(PICTURES))
DAMAGED[1024:1030] = b"\xff" * 6


def inside(name: str, *keys: str) -> list[tuple[str, str]]:
    """Return the pictures of an archive under their paths in it."""
    return [(key, f"./{name}/{key}") for key in keys]


INPUTS = {
    "URLs": Given("u.txt", f"# mine\n{A}\n\n  {B}\r\n", LINES),
    "addresses of stores": Given(
        "u",
        "s3://scans/a b+%2F.jpg\nhf://datasets/o/n/a.jpg\n\ngs://scans/x.jpg\ns3://scans/\n",
        [(..., "s3://scans/a b+%2F.jpg"), (..., "hf://datasets/o/n/a.jpg"), (..., "gs://scans/x.jpg"), (..., None)],
    ),
    "SageMaker Ground Truth": Given(
        "m.manifest",
        '{"source-ref":"s3://scans/1.jpg","label":0}\n{"source-ref":"s3://scans/2.jpg"}\n',
        [(..., "s3://scans/1.jpg"), (..., "s3://scans/2.jpg")],
    ),
    "Vertex AI": Given(
        "v.csv", "gs://scans/1.jpg,cat\ngs://scans/2.jpg,dog\n", [(..., "gs://scans/1.jpg"), (..., "gs://scans/2.jpg")]
    ),
    "keys of buckets in a cell": Given(
        "c.csv",
        'id,images\n1,"s3://scans/1.jpg; s3://scans/2.jpg"\n2,"[\'s3://scans/3.jpg\']"\n',
        [("1", "s3://scans/1.jpg"), ("1#2", "s3://scans/2.jpg"), ("2", "s3://scans/3.jpg")],
    ),
    "URLs without a name": Given("u", f"{A}\n{B}\n", LINES),
    "URLs with commas and spaces": Given(
        "u.txt", "http://a.example/x,1 y.jpg\n", [(..., "http://a.example/x,1 y.jpg")]
    ),
    "URLs named CSV": Given("u.csv", f"{A}\nhttp://a.example/x,1.jpg\n", [(..., A), (..., "http://a.example/x,1.jpg")]),
    "URLs of PowerShell": Given("u.txt", f"{A}\r\n{B}\r\n".encode("utf-16"), LINES),
    "URLs below a heading": Given(
        "u.txt", f"URL\n{A}\nhttp://a.example/x,1.jpg", [(..., A), (..., "http://a.example/x,1.jpg")]
    ),
    "paths": Given("p.txt", "a.jpg\nb c.png\n", [(..., "./a.jpg"), (..., "./b c.png")]),
    "Excel, English": Given("e.csv", TABLE.replace("^", ","), AB),
    "Excel, French": Given("e.csv", "\ufeff" + TABLE.replace("^", ";"), AB),
    "Excel, German, Windows-1252": Given("e.csv", TABLE.replace("^", ";").encode("cp1252"), AB),
    "Excel, Unicode text": Given("e.txt", TABLE.replace("^", "\t").encode("utf-16"), AB),
    "Excel, no mark": Given("e.csv", TABLE.replace("^", ",").encode("utf-16-be"), AB),
    "Excel, sep=": Given("e.csv", "sep=|\r\n" + TABLE.replace("^", "|"), AB),
    "Excel, a title above": Given("e.csv", "Export du 1er mai;;\r\n;;\r\n" + TABLE.replace("^", ";"), AB),
    "Excel, empty rows": Given(
        "e.csv", f"Fichier image;Titre\r\n{A};x\r\n;\r\n{B};y\r\n ; \r\n;\r\n", [("e.csv:1", A), ("e.csv:3", B)]
    ),
    "Excel, Japanese": Given(
        "e.csv", f"id,url\n写真,{A}\n".encode("shift_jis"), [("写真", A)], {"encoding": "shift_jis"}
    ),
    "delimiters behind": Given("t.csv", f"id,url,title,\n1,{A},x,\n2,{B},y,,\n", AB),
    "delimiters behind rows alone": Given("t.csv", f"id,url,title\n1,{A},x,\n2,{B},y,\n", AB),
    "a row too long": Given("t.csv", f"id,url\n1,{A}\n9,{C},x\n2,{B}\n", [("1", A), (..., None), ("2", B)]),
    "a stray quote": Given("t.csv", f'id,title,url\n1,"x,{C}\n2,"y",{B}\n', [(..., None), ("2", B)]),
    "no header": Given("t.csv", f"x,{A}\ny,{B}\n", LINES),
    "img2dataset TSV": Given("t.tsv", f"caption\turl\nx, y\t{A}\nz\t{B}\n", LINES),
    "Conceptual Captions": Given("cc.tsv", f"a man\t{A}\na dog, too\t{B}\n", LINES),
    "Google Sheets": Given("g.csv", f'ID,Photo\n1,"=IMAGE(""{A}"")"\n2,"=HYPERLINK(""{B}"";""x"")"\n', AB),
    "Google Form": Given("g.csv", f'Timestamp,Image URL\n1/2/2024,"{A}, {B}"\n', [(..., A), (("#2"), B)]),
    "Airtable CSV": Given("air.csv", f'Id,Attachments\n1,"x.jpg ({A}),y.jpg ({B})"\n', [("1", A), ("1#2", B)]),
    "Airtable API": Given(
        "air.json", dumped({"records": [{"id": "r", "fields": {"Photos": [{"url": A}]}}]}), [("r", A)]
    ),
    "Omeka CSV": Given("o.csv", f'Identifier,files\nx,"{A}|{B}"\n', [("x", A), ("x#2", B)], {"id_field": "identifier"}),
    "CONTENTdm TSV": Given("c.txt", "Title\tDate\tFile Name\nx\t1932\t12.jp2\n", [(..., "./12.jp2")]),
    "Wikidata CSV": Given("w.csv", f"item,itemLabel,image\nhttp://w/Q1,x,{A}\n", [(..., A)]),
    "Wikidata JSON": Given("w.json", dumped([{"item": "Q1", "image": A}]), [(..., A)]),
    "SPARQL JSON": Given(
        "w.json",
        dumped({"head": {"vars": []}, "results": {"bindings": [{"image": {"type": "uri", "value": A}}]}}),
        [(..., A)],
    ),
    "array": Given("a.json", dumped([{"id": 1, "url": A}, {"id": 2, "url": B}], 1), AB),
    "array of URLs": Given("a.json", dumped([A, B]), LINES),
    "array named JSON Lines": Given("a.jsonl", dumped([{"id": 1, "url": A}, {"id": 2, "url": B}]), AB),
    "wrapped": Given(
        "d.json", dumped({"count": 2, "items": [{"id": 1, "url": A}, {"id": 2, "url": B}], "next": None}), AB
    ),
    "wrapped twice": Given("d.json", dumped({"response": {"docs": [{"id": 1, "url": A}]}}, 2), AB[:1]),
    "objects over lines": Given("o.json", dumped({"id": 1, "url": A}, 2) + "\n" + dumped({"id": 2, "url": B}, 2), AB),
    "objects side by side": Given("o.json", dumped({"id": 1, "url": A}) + dumped({"id": 2, "url": B}), AB),
    "lines with commas": Given("l.jsonl", f'{{"id":1,"url":"{A}"}},\n{{"id":2,"url":"{B}"}}\n', AB),
    "JSON Lines named text": Given("l.txt", f'{{"id":1,"url":"{A}"}}\n{{"id":2,"url":"{B}"}}\n', AB),
    "JSON Lines in UTF-16": Given("l.jsonl", f'{{"id":1,"url":"{A}"}}\n{{"id":2,"url":"{B}"}}\n'.encode("utf-16"), AB),
    "COCO": Given(
        "coco.json",
        dumped(
            {
                "info": {"year": 2017},
                "licenses": [{"id": 9, "url": C}],
                "annotations": [{"id": 3, "image_id": 1}],
                "images": [{"id": 1, "file_name": "1.jpg", "coco_url": A}, {"id": 2, "coco_url": B}],
            }
        ),
        AB,
    ),
    "MediaWiki": Given(
        "w.json",
        dumped(
            {
                "batchcomplete": "",
                "query": {
                    "normalized": [{"from": "x"}],
                    "pages": {"7": {"pageid": 7, "imageinfo": [{"url": A}]}, "9": {"original": {"source": B}}},
                },
            }
        ),
        [("7", A), ("9", B)],
    ),
    "MediaWiki, newer": Given("w.json", dumped({"query": {"pages": [{"imageinfo": [{"url": A}]}]}}, 2), [(..., A)]),
    "objects by key": Given(
        "k.json",
        dumped({"a": {"url": A}, "b": {"img": B}, "c": {"title": "x"}, "d": {"url": C}, "count": 4}),
        [("a", A), ("b", B), ("c", None), ("d", C)],
    ),
    "two objects by key": Given("k.json", dumped({"data": {"a": {"url": A}, "b": {"url": B}}}), [("a", A), ("b", B)]),
    "an object with objects": Given(
        "k.json", dumped({"user": {"image": "x.jpg"}, "data": {"x": 1}, "id": 1, "url": A}), AB[:1]
    ),
    "VGG Image Annotator": Given(
        "via.json",
        dumped({"_via_settings": {}, "_via_img_metadata": {"1.jpg9": {"filename": "1.jpg", "size": 9}}}),
        [("1.jpg9", "./1.jpg")],
    ),
    "Omeka S": Given("o.json", dumped([{"@id": "http://o/media/5", "o:id": 5, "o:original_url": A}]), LINES[:1]),
    "CONTENTdm item": Given("c.json", dumped({"id": 1, "collectionAlias": "p", "imageUri": A}), AB[:1]),
    "Europeana": Given("e.json", dumped({"success": True, "items": [{"id": "/1", "edmIsShownBy": [A]}]}), AB[:1]),
    "DPLA": Given("d.json", dumped({"count": 1, "docs": [{"id": "1", "isShownAt": B, "object": A}]}), AB[:1]),
    "The Met": Given("m.jsonl", dumped({"id": 1, "primaryImage": A, "primaryImageSmall": B}), AB[:1]),
    "Rijksmuseum": Given("r.json", dumped({"artObjects": [{"id": "1", "webImage": {"guid": "x", "url": A}}]}), AB[:1]),
    "Flickr": Given("f.json", dumped({"photos": {"page": 1, "photo": [{"id": "1", "url_l": A}]}}), AB[:1]),
    "Reddit": Given("r.json", dumped({"kind": "Listing", "data": {"children": [{"data": {"url": A}}]}}), LINES[:1]),
    "HAL": Given("h.json", dumped({"_embedded": {"images": [{"id": 1, "url": A}]}, "_links": {}}), AB[:1]),
    "Unsplash": Given("u.tsv", f"photo_id\tphoto_url\tphoto_image_url\nx\thttp://u/x\t{A}\n", LINES[:1]),
    "Open Images": Given("o.csv", f"ImageID,OriginalURL,OriginalLandingURL\nx,{A},{B}\n", LINES[:1]),
    "Shopify": Given("s.csv", f"Handle,Title,Image Src\nx,t,{A}\n", LINES[:1]),
    "WooCommerce": Given("w.csv", f'ID,Name,Images\n1,t,"{A}, {B}"\n', [("1", A), ("1#2", B)]),
    "Notion": Given("n.csv", f"Name,Files & media\nx,{A}\n", LINES[:1]),
    "Roboflow": Given("r.csv", "filename,width,class\na.jpg,1,x\n", [(..., "./a.jpg")]),
    "exiftool": Given("e.json", dumped([{"SourceFile": "./a.jpg", "Title": "x"}]), [(..., "./a.jpg")]),
    "LLaVA": Given("l.json", dumped([{"id": "1", "image": "a.jpg", "conversations": []}]), [("1", "./a.jpg")]),
    "Danbooru": Given("d.jsonl", dumped({"id": 1, "file_url": A, "preview_file_url": B}), AB[:1]),
    "kohya metadata": Given(
        "k.json", dumped({"a/1.png": {"tags": "x"}, "a/2.png": {}}), [(..., "./a/1.png"), (..., "./a/2.png")]
    ),
    "imagefolder": Given("metadata.jsonl", '{"file_name": "1.png", "text": "x"}\n', [(..., "./1.png")]),
    "GeoJSON": Given(
        "g.geojson", dumped({"type": "FeatureCollection", "features": [{"id": 1, "properties": {"image": A}}]}), AB[:1]
    ),
    "lists and objects": Given("n.jsonl", f'{{"id":1,"images":["{A}",{{"src":"{B}"}}]}}\n', [("1", A), ("1#2", B)]),
    "a dotted path": Given(
        "n.jsonl", f'{{"id":1,"a":[{{"b":"{A}"}},{{"b":"{B}"}}]}}', [("1", A), ("1#2", B)], {"image_field": "a.b"}
    ),
    "one id for several": Given("o.csv", f"id,url\nx,{A}\nx,{B}\ny,{C}\n", [("x", A), ("x#2", B), ("y", C)]),
    "not quite URLs": Given(
        "n.jsonl",
        '{"url":"//a.example/a.jpg"}\n{"url":"www.a.example/a.jpg"}\n{"image":"b\\\\a.jpg"}\n{"url":"\\u200b<http://a.example/a.jpg>"}',
        [(..., "https://a.example/a.jpg"), (..., "https://www.a.example/a.jpg"), (..., "./b/a.jpg"), (..., A)],
    ),
    "a path of Windows": Given(
        "n.jsonl", f'{{"id":1,"url":"{A}"}}\n{{"id":2,"path":"C:\\\\a.jpg"}}', [("1", A), ("2", None)]
    ),
    "data: URIs": Given(
        "d.jsonl",
        f'{{"id":1,"image":"{DATA}"}}\n{{"id":2,"image":"{GIF}"}}\n{{"id":3,"image":"{AVIF}"}}',
        [
            ("1", data_url(base64.b64decode(DATA[22:]))),
            ("2", data_url(base64.b64decode(GIF))),
            ("3", data_url(base64.b64decode(AVIF))),
        ],
    ),
    "other columns": Given("x.csv", f"cote,vignette\n1,{A}\n", "--image-field vignette"),
    "other columns, and rows that are broken": Given(
        "x.csv", f"cote,vignette\n1,{A}\n2,{B},x\n", "--image-field vignette"
    ),
    "other fields, and a line that is broken": Given(
        "x.jsonl", f'{{"id": 1, "vignette": "{A}"}}\n{{"id": \n', "--image-field vignette"
    ),
    "a workbook": Given("x.xlsx", zipped({"xl/workbook.xml": b""}), "save it as CSV"),
    "ZIP": Given("p.zip", zipped({"note.md": b"", **PICTURES, "__MACOSX/._1.jpg": b""}), inside("p.zip", *PICTURES)),
    "ZIP, names in UTF-8 that are not said to be": Given("p.zip", UNSAID, inside("p.zip", "s/é/x.jpg")),
    "tar": Given("p.tar", tarred({"./d/1.jpg": b"", "/e/2.jpg": b""}), inside("p.tar", "d/1.jpg", "e/2.jpg")),
    "tar, a name in Latin-1": Given("p.tar", tarred({"x\udce9.jpg": b""}), inside("p.tar", "xé.jpg")),
    "tar.gz": Given("p.tgz", gzip.compress(tarred(PICTURES)), inside("p.tgz", *PICTURES)),
    "tar.bz2": Given("p", bz2.compress(tarred(PICTURES)), inside("p", *PICTURES)),
    "tar.xz": Given("p.tar.xz", lzma.compress(tarred(PICTURES)) * 2, inside("p.tar.xz", *PICTURES)),
    "tar.zst": Given("p.tar.zst", zstd.compress(tarred(PICTURES)), inside("p.tar.zst", *PICTURES)),
    "WebDataset, not in its order": Given("s.tar", tarred(SHARD), inside("s.tar", "s/2.jpg", "s/1.jpg")),
    "tar with links": Given(
        "l.tar",
        tarred({**PICTURES, "3.jpg*": "s/1.jpg", "s/4.jpg": "1.jpg", "5.jpg": "/etc/6.jpg", "../7.jpg": b""}),
        inside("l.tar", *PICTURES, "3.jpg", "s/4.jpg"),
    ),
    "tar that was added to": Given(
        "t.tar", tarred({"1.jpg": b"old", "2.jpg": b"", "./1.jpg": b"new"}), inside("t.tar", "2.jpg", "1.jpg")
    ),
    "a list among its pictures": Given(
        "p.zip",
        zipped({**PICTURES, "s/l.csv": b"id,file_name\na,1.jpg\n", "info.json": b'{"name": "x"}'}),
        [("a", "./p.zip/s/1.jpg")],
    ),
    "a list among its pictures, whose field is named": Given(
        "p.zip",
        zipped({**PICTURES, "s/l.csv": b"id,vignette\na,1.jpg\n"}),
        [("a", "./p.zip/s/1.jpg")],
        {"image_field": "vignette"},
    ),
    "a list alone": Given("l.zip", zipped({"in/l.csv": b"id,path\na,1.jpg\n", "readme.md": b""}), [("a", "./1.jpg")]),
    "URLs in tar": Given("l.tar.gz", gzip.compress(tarred({"u.txt": f"{A}\n{B}\n".encode()})), [("1", A), ("2", B)]),
    "JSON Lines in bzip2": Given("l.jsonl.bz2", bz2.compress(f'{{"id":"1","url":"{A}"}}\n'.encode()), AB[:1]),
    "lists in ZIP": Given("l.zip", zipped({"a.csv": b"", "b.csv": b""}), "several lists (a.csv, b.csv)"),
    "archives in ZIP": Given("l.zip", zipped({"a.zip": b"", "b.tar": b""}), "skipped 2 files: 1 .tar, 1 .zip"),
    "a text in ZIP that is no list": Given(
        "l.zip", zipped({"readme.txt": b"Hello there\n", "a.svg": b""}), "skipped 2 files: 1 .svg, 1 .txt"
    ),
    "ZIP with a password": Given(
        "l.zip", zipped({"a.jpg": b"x"}).replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"), "1 encrypted"
    ),
    "ZIP cut short": Given("l.zip", zipped(PICTURES)[:-30], "cut short, damaged or no archive"),
    "tar cut short": Given("l.tar", tarred({"1.jpg": bytes(2000)})[:1500], "cut short"),
    "tar.gz cut short": Given("l.tar.gz", gzip.compress(tarred(PICTURES))[:-40], "cut short"),
    "a damaged tar": Given("l.tar", bytes(DAMAGED), "damaged (bad checksum)"),
    "a broken array": Given("x.json", '[{"id": 1', "line 1: cut short"),
    # What stands where.
    "Excel, a title of two cells above": Given(
        "e.csv", f"Stock 2024,,\nof May,by me,\nNo.,Title,Bild\n1,x,{A}\n2,y,{B}\n", LINES
    ),
    "a value that is a name of a column": Given(
        "p.csv", "observation\textension\nx\tjpg\ny\tpng\n", "no record of p.csv has a picture"
    ),
    "a last column without a name": Given("e.csv", f"id,,url,\n1,x,{A},y\n2,,{B},\n", AB),
    "quotes behind spaces": Given("e.csv", f'id, url\n1, "{A}"\n2, "{B}"\n', AB),
    "single quotes": Given("e.csv", f"'id','t','url'\n'1','x, y','{A}'\n'2','','{B}'\n", AB),
    "two columns of one name": Given("e.csv", f"id,url,url\n1,{A},{B}\n2,,{C}\n", [("1", A), ("1#2", B), ("2", C)]),
    "columns with numbers": Given(
        "e.csv", f"id,Image 1,Image 2,thumb_100,image_9\n1,{A},{B},x,{C}\n2,,{C},x,\n", [("1", A), ("1#2", B), ("2", C)]
    ),
    "tabs under names that nobody knows": Given("m.txt", f"gbifID\treferences\n1\t{A}\n", "--image-field references"),
    "GBIF": Given("m.txt", f"gbifID\ttype\tidentifier\treferences\n1\tx\t{A}\thttp://p\n", LINES[:1]),
    "Flickr8k": Given("t.txt", "1.jpg#0\tA child .\n1.jpg#1\tA girl .\n", [(..., "./1.jpg"), (..., "./1.jpg")]),
    "a column of URLs under such a name": Given("m.txt", f"Nr;Aufnahme\n1;{A}\n", "--image-field Aufnahme"),
    "a number before each URL": Given("m.txt", f"1,{A}\n2,{B}\n", LINES),
    "semicolons of URLs": Given("m.txt", f"{A}?a=1&amp;b=2\n{B};x=1\n", [(..., f"{A}?a=1&b=2"), (..., f"{B};x=1")]),
    "names in a column without a header": Given("m.csv", "a.jpg\nb c.jpg\n", [(..., "./a.jpg"), (..., "./b c.jpg")]),
    "what stands for nothing": Given(
        "m.csv", f"id,url\n1,{A}\n2,#N/A\n3,-\n4,NULL\n", [("1", A), *((n, None) for n in "234")]
    ),
    "Notion CSV": Given(
        "n.csv", 'Name,Files & media\nx,"P/a.png, P/b.png"\n', [(..., "./P/a.png"), ("#2", "./P/b.png")]
    ),
    "a page and a picture": Given("m.csv", f"id,URL,ImageURL\n1,http://a.example/1,{A}\n", AB[:1]),
    "a page, a picture without a suffix": Given(
        "p.json", dumped({"photos": [{"id": 1, "url": "http://p/1", "src": {"original": A, "tiny": B}}]}), AB[:1]
    ),
    "a picture and its thumbnail": Given(
        "m.csv", f"id,url,thumbnail_url\n1,http://a.example/1,{B}\n", [("1", "http://a.example/1")]
    ),
    "a picture elsewhere and its name": Given(
        "m.csv", "id,url,file_name\n1,http://a.example/1,1.jpg\n", [("1", "http://a.example/1")]
    ),
    "Omeka Classic": Given(
        "o.json",
        dumped([{"id": 7, "url": "http://o/api/files/7", "file_urls": {"original": A, "thumbnail": B}}]),
        [("7", A)],
    ),
    "semicolons, URLs with commas": Given(
        "e.csv", "id;url\n1;http://a.example/x,y.jpg\n", [("1", "http://a.example/x,y.jpg")]
    ),
    "URLs with a delimiter behind": Given("t.csv", f"url,\n{A},\n{B},\n", LINES),
    "a header that comes again": Given("t.csv", f"id,url\n1,{A}\nid,url\n2,{B}\n", [("1", A), (..., None), ("2", B)]),
    "names in a list of Python's": Given(
        "t.csv", "id,images\n1,\"['a.jpg', 'b.jpg']\"\n", [("1", "./a.jpg"), ("1#2", "./b.jpg")]
    ),
    "a picture that leads to a page": Given(
        "t.csv", f'id,img\n1,"<a href=""http://p/""><img src=""{A}""></a>"\n', AB[:1]
    ),
    "Omeka Classic CSV": Given("o.csv", f"id,file\n1,{A}^^{B}\n", [("1", A), ("1#2", B)]),
    # Texts.
    "names with commas": Given(
        "m.txt", "Doe, Jane; 1932.jpg\nRoe, John.jpg\n", [(..., "./Doe, Jane; 1932.jpg"), (..., "./Roe, John.jpg")]
    ),
    "comments alone": Given("m.txt", "# nothing yet\n", "is no list that is known"),
    "a list in Markdown": Given("m.md", f"# Mine\n\n- ![x]({A})\n- <{B}>\n", LINES),
    "a numbered list": Given("m.txt", f"1. {A}\n2) {B}\n", LINES),
    "URLs in quotes": Given("m.txt", f"\"{A}\",\n'{B}'\n", LINES),
    "words behind": Given("m.txt", f"n/1.jpg 0\n{A} a dog\n{B}, a cat\n", [(..., "./n/1.jpg"), *LINES]),
    "sums": Given("m.txt", f"{'0a' * 16}  a b.jpg\n{'0a' * 32} *b.jpg\n", [(..., "./a b.jpg"), (..., "./b.jpg")]),
    "what is no picture": Given("m.txt", f"Bilder\n{A}\n", [(..., None), (..., A)]),
    "prose": Given("m.txt", "Dear all,\nthe pictures are in the attachment.\n", "m.txt is no list that is known"),
    "YAML": Given("m.yml", f"- id: 1\n  url: {A}\n", "JSON Lines or CSV"),
    "XML": Given(
        "s.xml", f"<?xml version='1.0'?>\n<urlset><loc>{A}</loc></urlset>", "XML or HTML; write the addresses"
    ),
    "a page to log in": Given("l.csv", "\n<!DOCTYPE html>\n<p>Please, log in, again</p>", "is XML or HTML"),
    "JSONP": Given(
        "f.json", f'jsonFlickrApi({{"photos": {{"photo": [{{"url_o": "{A}"}}]}}}})', "take off what stands before"
    ),
    "Python": Given("p.jsonl", f"{{'id': 1, 'url': '{A}'}}\n", "Python: json.dumps"),
    "Python in its first line alone": Given(
        "p.jsonl", "{'id': 1}\n" + dumped({"id": 1, "url": A}), [(..., None), ("1", A)]
    ),
    "TOML": Given("p.toml", f'[[image]]\nurl = "{A}"\n', "is TOML or INI"),
    "7-Zip": Given("p.7z", b"7z\xbc\xaf\x27\x1c" + bytes(99), "packed by 7-Zip; unpack it"),
    "TFRecord": Given("t.tfrecord", bytes(range(256)) * 9, "is a binary file"),
    "Numbers": Given("t.numbers", zipped({"Index/Document.iwa": b"", "preview.jpg": b""}), "a spreadsheet of Numbers"),
    "Shift-JIS that is not named": Given("e.csv", f"番号,url\n写真表示,{A}\n".encode("cp932"), "--encoding cp932"),
    "a picture": Given("1.gif", b"GIF89a" + bytes(90), [("1.gif", "./1.gif")]),
    "a gap of half a million spaces": Given(
        "g.jsonl", dumped({"id": 1, "url": f"a{' ' * 500_000}.jpg"}), [("1", None)]
    ),
    # JSON.
    "pandas, columns": Given("p.json", dumped({"id": {"0": 1, "1": 2}, "url": {"0": A, "1": B}}), AB),
    "pandas, split": Given("p.json", dumped({"columns": ["id", "url"], "index": [0, 1], "data": [[1, A], [2, B]]}), AB),
    "Datasette": Given("d.json", dumped({"rows": [[1, A], [2, B]], "columns": ["id", "url"], "truncated": False}), AB),
    "rows below their names": Given("d.json", dumped([["id", "url"], [1, A], [2, B]]), AB),
    "rows without names": Given("d.json", dumped([[1, A], [2, B]]), "pandas: orient='records'"),
    "columns": Given("d.json", dumped({"id": [1, 2], "url": [A, B]}), AB),
    "rows on lines": Given("d.jsonl", f'["id", "url"]\n[1, "{A}"]\n[2, "{B}"]\n', AB),
    "lists for training and tests": Given(
        "d.json", dumped({"info": [{"x": 1}], "train": [{"id": 1, "image": A}], "test": [{"id": 2, "image": B}]}), AB
    ),
    "URLs by key": Given("m.json", dumped({"1": A, "2": B}, 1), AB),
    "lists of URLs by key": Given("m.json", dumped({"x": [A, B], "y": [C]}), [("x", A), ("x#2", B), ("y", C)]),
    "captions by picture": Given("m.json", dumped({"a.png": "a dog", C: ["x", "y"]}), [(..., "./a.png"), (..., C)]),
    "Hugging Face rows": Given(
        "r.json",
        dumped({"features": [{"feature_idx": 0, "name": "image"}], "rows": [{"row": {"image": {"src": A}}}]}),
        LINES[:1],
    ),
    "a list of another name": Given("s.json", dumped({"n": 1, "products": [{"id": 1, "image": {"src": A}}]}), AB[:1]),
    "GraphQL": Given(
        "g.json", dumped({"data": {"x": {"edges": [{"node": {"id": 1, "image": {"url": A}}}]}}}), LINES[:1]
    ),
    "Scrapy": Given("s.jl", dumped({"id": 1, "image_urls": [A, B], "images": [{"url": A, "path": "x"}]}), AB[:1]),
    "nothing found": Given("r.json", dumped({"count": 0, "results": []}), "holds no records"),
    "a picture deep within": Given(
        "r.json", dumped([{"id": 1, "versions": [{"uri_of": A}]}]), "--image-field versions.uri_of"
    ),
    "GeoJSON, text after text": Given("g.geojsons", f'\x1e{{"id":1,"url":"{A}"}}\n\x1e{{"id":2,"url":"{B}"}}\n', AB),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(settings_for(tmp_path_factory.mktemp("inputs") / "state")) as opened:
        yield opened


def _found(store: Store, path: Path, options: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    ingest(store, Manifest(str(path)), IngestOptions(**options))
    return store._connection.rows(
        "SELECT r.key, s.url FROM records r LEFT JOIN sources s ON s.id = r.source "
        "JOIN manifests m ON m.id = r.manifest WHERE m.path = ? AND r.state <> 'removed' ORDER BY r.position, r.id",
        (str(path.resolve()),),
    )


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs(store: Store, tmp_path: Path, kind: str) -> None:
    """A list gives its pictures under their keys, or is refused in words that say what to do."""
    given = INPUTS[kind]
    path = tmp_path / given.name
    path.write_bytes(given.content.encode() if isinstance(given.content, str) else given.content)
    if isinstance(given.expected, str):
        with pytest.raises(ManifestError) as caught:
            _found(store, path, given.options)
        assert given.expected in f"{caught.value}\n{caught.value.cure}"
        return
    expected = [url and url.replace("./", f"{tmp_path}/") for _, url in given.expected]
    found = _found(store, path, given.options)
    assert [url for _, url in found] == expected
    for (key, _), (wanted, _) in zip(found, given.expected, strict=True):
        assert key.startswith(f"{given.name}:") if wanted is ... else key.endswith(wanted)


def test_parquet(store: Store, tmp_path: Path) -> None:
    """Columns of any case, and the pictures that Hugging Face puts into a column, are found."""
    arrow = pyarrow()
    picture = b"GIF89a" + bytes(range(90))
    for name, columns, expected in (
        ("laion", {"URL": [A], "TEXT": ["x"]}, A),
        ("binary", {"url": [A.encode()]}, A),
        ("hugging", {"image": [{"bytes": picture, "path": "1.gif"}]}, data_url(picture)),
    ):
        held = io.BytesIO()
        arrow.parquet.write_table(arrow.table(columns), held)
        path = tmp_path / name
        path.write_bytes(held.getvalue())
        assert [url for _, url in _found(store, path, {})] == [expected]


def test_pictures_in_records_are_kept_once_and_as_bytes(tmp_path: Path) -> None:
    """However a record writes its picture, the state has its bytes once and its text nowhere; an export has it again.

    What comes out is as it came, its base64 in one piece; one that is no base64 costs its record alone.
    """
    held = io.BytesIO()
    Image.effect_noise((64, 64), 99).save(held, "PNG")
    text = base64.b64encode(held.getvalue()).decode()
    uri = f"data:image/png;base64,{text}"
    lines = [
        dumped({"id": "raw", "image": text, "note": "é\t"}),
        dumped({"id": "two", "images": [{"bytes": uri}, {"bytes": text}, "1.jpg"]}),
        dumped({"id": "slashes", "url": uri}).replace("/", "\\/"),
        dumped({"id": "wrapped", "url": f" DATA:;base64,{base64.encodebytes(held.getvalue()).decode()}"}),
        dumped({"id": "for URLs", "url": uri[:22] + uri[22:].replace("+", "-").replace("/", "_").rstrip("=")}),
        dumped({"id": "percent", "url": "data:image/png," + "".join(f"%{byte:02x}" for byte in held.getvalue())}),
        dumped({"id": "cut", "url": uri[:-9] + "!!"}),
    ]
    bench = Workbench(tmp_path)
    path = tmp_path / "l.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    bench.ingest_path(str(path))
    assert bench.fetch() == StageSummary(done=1, dead=1)
    assert query(bench.state, "SELECT count(*), sum(bytes) FROM images") == [(1, len(held.getvalue()))]
    assert query(bench.state, "SELECT key, error_class FROM records WHERE state = 'invalid'") == [
        ("cut", "invalid_url")
    ]
    query(bench.state, "PRAGMA wal_checkpoint(TRUNCATE)")
    kept = b"".join(file.read_bytes() for file in bench.state.rglob("state.db*"))
    assert kept.count(text[-40:].encode()) == 0
    assert not list((bench.state / "images" / "parts").glob("*"))
    out = tmp_path / "out.jsonl"
    with Reader(bench.state) as reader:
        export(reader, str(out), ExportOptions())
        assert not list(deep_problems(reader))
    found = [json.loads(line) for line in out.read_bytes().splitlines()]
    given = [json.loads(lines[n]) for n in (0, 1, 1, 1, 2, 3, 4, 5, 6)]
    changed = {"wrapped": f"DATA:;base64,{text}", "for URLs": uri, "percent": uri}
    assert [{name: value for name, value in one.items() if not name.startswith("vlm_")} for one in found] == [
        one | ({"url": changed[one["id"]]} if one["id"] in changed else {}) for one in given
    ]
    assert out.read_bytes().splitlines()[0] == lines[0].encode()


def test_only_what_was_taken_out_is_put_back(tmp_path: Path) -> None:
    """A line that names a kept picture, its own or another's, in its own words comes out as it came, byte for byte."""
    first, second = (base64.b64encode(b"GIF89a" + bytes([n]) * 90).decode() for n in range(2))
    marks = [f"etl-picture-sha256={hashlib.sha256(base64.b64decode(text)).hexdigest()}" for text in (first, second)]
    lines = [
        dumped({"id": "twice", "image": first, "thumbnail": first}),
        dumped({"id": "of another", "url": A, "x": marks * 99}),
        dumped({"id": "of its own", "image": second, "x": marks * 99, "y": f"data:image/gif;base64,{marks[0]}"}),
        dumped({"id": "two", "images": [second, "http://a.example/2.jpg"], "mark": marks[1].replace("=", "\\u003d")}),
        dumped({"id": "twice", "image": first, "thumbnail": first}),
    ]
    bench, out = Workbench(tmp_path), tmp_path / "out.jsonl"
    (tmp_path / "l.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for _ in range(2):
        bench.ingest_path(str(tmp_path / "l.jsonl"))
    with Reader(bench.state) as reader:
        export(reader, str(out), ExportOptions())
        assert not list(deep_problems(reader))
    again = '{"vlm_caption":null,"vlm_error":"duplicate_key"}'
    assert out.read_text(encoding="utf-8").splitlines() == [
        *lines[:3], lines[3], lines[3], f"{lines[4][:-1]},{again[1:]}",
    ]  # fmt: skip


def test_parts_have_the_pictures_of_their_records(tmp_path: Path) -> None:
    """Also those that another part fetches; what is put together from parts has all."""
    texts = [base64.b64encode(b"GIF89a" + bytes([n]) * 90).decode() for n in range(4)]
    bench, out = Workbench(tmp_path), tmp_path / "out.jsonl"
    bench.ingest({"id": "a", "images": texts[:3]}, {"id": "b", "image": texts[3]})
    whole = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    with Store.open(bench.settings) as store:
        split(store, 2, tmp_path / "parts")
    parts, merged = list((tmp_path / "parts").iterdir()), tmp_path / "merged"
    with Store.open(settings_for(merged)) as store:
        list(merge(store, parts))
    for state in (*parts, merged):
        with Reader(state) as reader:
            export(reader, str(out), ExportOptions())
        assert all(json.loads(line) in whole for line in out.read_bytes().splitlines())
    assert len(out.read_bytes().splitlines()) == 4


def test_a_state_that_has_pictures_in_its_lines_goes_on(tmp_path: Path) -> None:
    """They are fetched and exported from there."""
    bench, out = Workbench(tmp_path), tmp_path / "out.jsonl"
    text = base64.b64encode(encoded(Image.new("L", (8, 8)), "PNG")).decode()
    bench.ingest({"id": "a", "image": text})
    line, url = (tmp_path / "manifest.jsonl").read_bytes(), f"data:,sha256={hashlib.sha256(text.encode()).hexdigest()}"
    with Store.open(bench.settings) as store, store._connection.transaction() as db:
        db.conn.execute("DELETE FROM own_pictures")
        db.conn.execute("UPDATE sources SET url = ?", (url,))
        db.conn.execute("UPDATE record_lines SET line = ?", (line,))
    assert bench.fetch() == StageSummary(done=1)
    with Reader(bench.state) as reader:
        export(reader, str(out), ExportOptions())
    assert out.read_bytes() == line


def test_files_beside_a_picture_in_an_archive_are_its_fields(tmp_path: Path) -> None:
    """What has a picture's name is read, in whatever order it comes; what makes no sense costs its own record."""
    path = tmp_path / "s.tar.gz"
    bad = {
        "3.jpg": b"",
        "3.json": b"{",
        "4.jpg": b"",
        "4.txt": bytes(MAX_SIDECAR + 1),
        "note.txt": b"",
        "5.caption": b"",
        "../6.jpg": b"",
    }
    path.write_bytes(gzip.compress(tarred({**SHARD, **bad})))
    manifest = Manifest(str(path))
    found = list(manifest.lines())
    assert [json.loads(line) for line in found[:2]] == [
        {"id": "s/2.jpg", "path": "s/2.jpg", "txt": "two"},
        {"id": "s/1.jpg", "path": "s/1.jpg", "json": {"url": "http://a.example/x"}, "txt": "one"},
    ]
    reasons = [line.reason.partition(":")[0] for line in found[2:] if isinstance(line, BadRow)]
    assert reasons == ["3.json is not JSON", f"4.txt has more than {MAX_SIDECAR} bytes"]
    assert manifest.skipped == {".txt": 1, ".caption": 1, "outside of it": 1}
    assert list(manifest.lines()) == found


@pytest.mark.parametrize(
    ("content", "limit", "words"),
    [
        (gzip.compress(tarred({"1.bmp": bytes(1 << 20)})), ("_GRANTED", 1 << 16), "more than 200 times its size"),
        (tarred(PICTURES), ("MAX_MEMBERS", 1), "more than 1 files"),
        (zipped(PICTURES), ("MAX_MEMBERS", 1), "more than 1 files"),
        (zipped(PICTURES), ("MAX_DIRECTORY", 90), "a header of more than 90 bytes"),
        (tarred({"x" * (2 << 20): b""}), ("MAX_MEMBERS", 1), "a header of more than 1048576 bytes"),
        (gzip.compress(tarred({"x" * (2 << 20): b""})), ("MAX_MEMBERS", 1), "a header of more than 1048576 bytes"),
    ],
)
def test_archives_that_swell_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, limit: tuple[str, int], words: str
) -> None:
    """Neither how much an archive holds, nor how much it announces, is taken into memory beyond a limit."""
    monkeypatch.setattr(archives, *limit)
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=words):
        list(Manifest(str(path)).lines())


def test_a_directory_of_lists(store: Store, tmp_path: Path) -> None:
    """It has no pictures, and what it has is named."""
    (tmp_path / "part-1.parquet").touch()
    with pytest.raises(ManifestError, match="skipped 1 file") as caught:
        _found(store, tmp_path, {})
    assert caught.value.cure == "give the lists in it themselves: part-1.parquet"


def test_an_archive_from_a_pipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures could not be read a second time."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(zipped(PICTURES))))
    with pytest.raises(ManifestError, match="save it as a file"):
        list(Manifest("-").lines())
