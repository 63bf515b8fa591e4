"""What the first bytes of a file say it is that is no accepted picture, whatever its name or its server claims."""

import re
from html.parser import HTMLParser

from etl.text import clean

HEAD_BYTES = 1024
"""Bytes to look at; a PDF may have its marker anywhere in them."""

TEXT_BYTES = 32 * 1024
"""Bytes in which an error page's own words are looked for."""

_SHOWN = 120
"""Characters of a file's own words."""

_PHOTOGRAPH = "; only pictures as cameras and scanners make them are accepted"

_OTHERS = (
    (rb"8BPS\0\x02", "a large Photoshop document (PSB); save it as PSD or TIFF"),
    (
        rb"icns|\0\0[\x01\x02]\0[^\0]|BA.\0{3}|(CI|IC|CP|PT).{12}[\x0c\x28\x40]\0{3}",
        f"an icon or a cursor{_PHOTOGRAPH}",
    ),
    (rb"AT&TFORM", "a DjVu document of pages, not a picture; convert its pages to PDF or TIFF"),
    (rb"\xc5\xd0\xd3\xc6|%!PS", "PostScript, not a picture; convert it to PDF"),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document of pages (or FlashPix), not a picture"),
    (rb"PK\x03\x04.{26}(word|xl|ppt|\[Content_Types)|PK\x03\x04.{26}mimetype", "an Office document, not a picture"),
    (rb"PK\x03\x04", "a ZIP archive, not a picture"),
    (rb"\x1f\x8b", "gzip data, not a picture"),
    (rb"Rar!|7z\xbc\xaf|\xfd7zXZ|\x28\xb5\x2f\xfd|.{257}ustar", "an archive, not a picture"),
    (rb"FOVb|\0MRM|IIR[OS]|MMOR|II\x1a\0{3}HEAP", "a camera's raw data of a kind that is not read; save it as JPEG"),
    (rb"\x01\0{3}.{36} EMF|\xd7\xcd\xc6\x9a", "a drawing of Windows (EMF or WMF); save it as PNG"),
    (
        rb"\x0a[\0-\x05][\0\x01][\x01\x02\x04\x08]|\x01\xda[\0\x01][\x01\x02]\0|[\x8a\x8b][MJ]NG\r\n|BPG\xfb|FLIF",
        "a picture of a kind that is not accepted (PCX, SGI, MNG, BPG or FLIF); save it as PNG",
    ),
    (rb"gimp xcf", "a GIMP document; export it as PNG or TIFF"),
    (rb"\x76\x2f\x31\x01", "OpenEXR, which is not accepted"),
    (rb"#\?(RADIANCE|RGBE)", "Radiance HDR, which is not accepted"),
    (rb"DDS ", "a DirectDraw texture, which is not accepted"),
    (rb"SIMPLE  =", "FITS, which is not accepted"),
    (rb".{128}DICM", "a DICOM file, which is not accepted"),
    (rb"II\xbc", "JPEG XR, which is not accepted"),
    (rb"PF\s", "a PFM in colours, which is not accepted; save it as PPM"),
    (rb"qoif", "QOI, which is not accepted"),
    (rb"msid", "MrSID, which is not accepted"),
    (rb"RIFF.{4}AVI |\x1a\x45\xdf\xa3|FLV|\0\0\x01[\xba\xb3]", "a film, not a picture"),
    (rb".{4}ftyp(iso.|mp4.|M4V |qt  |3g..|avc1)", "a film, not a picture"),
    (rb"RIFF.{4}WAVE|ID3|OggS|fLaC|.{4}ftypM4A ", "sound, not a picture"),
    (rb"\0\x05\x16[\0\x07]\0\x02\0\0", "what macOS keeps beside a file (AppleDouble), not the file itself"),
    # Length of a name, palette or none, kind of picture, the palette's place, size and bits, then place, size, bits.
    (rb".\0[\x02\x03\x0a\x0b]\0{5}.{8}[\x08\x0f\x10\x18\x20]", f"a TGA{_PHOTOGRAPH}"),
    (rb".\x01[\x01\x09]..(.\0|\0\x01)[\x0f\x10\x18\x20].{8}\x08", f"a TGA{_PHOTOGRAPH}"),
)  # fmt: skip
_HTML = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|script|title)\b", re.IGNORECASE | re.DOTALL)
_SVG = re.compile(rb"<svg\b", re.IGNORECASE)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def describe(data: bytes) -> str:
    """Return what a file that is no accepted picture looks like, as a clause for people, from its beginning."""
    if not data:
        return "the file is empty"
    for marker, name in _OTHERS:
        if re.match(marker, data, re.DOTALL):
            return f"the file is {name}"
    text = data.decode("utf-16", "replace").encode() if data.startswith(_UTF16) else data
    text = text.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _HTML.match(text):
        return f"the file is an HTML page, not a picture{_own_words(_words_of_page(text))}"
    if _SVG.search(text[:HEAD_BYTES]):
        return "the file is SVG, a drawing; only pictures made of pixels are accepted"
    if data[4:8] == b"ftyp":
        return f"the file is of the type {clean(_printable(data[8:12]))}, which is not accepted"
    if text[:1] in (b"{", b"["):
        return f"the file is JSON, not a picture{_own_words(_printable(text))}"
    if text[:5].lower() == b"<?xml":
        return f"the file is XML, not a picture{_own_words(_words_of_page(text))}"
    if _is_text(text):
        return f"the file is text, not a picture{_own_words(_printable(text))}"
    if not data.strip(b"\0"):
        return "the file holds nothing but zeros"
    return f"the format is unknown; the file begins with {data[:12].hex(' ')}"


def first_words(data: bytes) -> str:
    """Return the first words that a page, XML, JSON or a plain text shows, one clean line; empty for anything else."""
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"<":
        return clean(_words_of_page(text, visible=True), _SHOWN)
    return clean(_printable(text), _SHOWN) if _is_text(text) else ""


def _is_text(data: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n" for byte in data[:HEAD_BYTES])


def _own_words(words: str) -> str:
    return f": {clean(words, _SHOWN)}" if words else ""


def _printable(data: bytes) -> str:
    return " ".join(data[: 8 * _SHOWN].decode("utf-8", "replace").split())


class _Page(HTMLParser):
    """Takes the title of a page, and the first of its text."""

    def __init__(self) -> None:
        super().__init__()
        self.title = self.text = ""
        self._within = ""

    def handle_starttag(self, tag: str, _: object) -> None:
        self._within = tag

    def handle_endtag(self, _: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "title":
            self.title += data
        elif self._within not in ("script", "style"):
            self.text += f" {data}"


def _words_of_page(data: bytes, *, visible: bool = False) -> str:
    """Return the title of a page, or else the first words that it shows; where ``visible`` is wanted, those first."""
    page = _Page()
    page.feed(data.decode("utf-8", "replace"))
    title, text = page.title.strip(), page.text.strip()
    return " ".join(((text or title) if visible else (title or text)).split())
