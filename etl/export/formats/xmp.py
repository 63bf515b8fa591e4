"""XMP files beside pictures (ISO 16684-1), with the fields that IPTC has for people who cannot see them."""

import re
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from etl.clock import iso_utc
from etl.export.format import SidecarFormat
from etl.export.lines import Joined
from etl.version import __version__

_ALT_TEXT = 250
"""Characters that IPTC advises for an alternative text; a screen reader reads it in one go."""

_NO_XML = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, and the control characters that it can but nobody should."""

_TOOLKIT = "caption-etl"

_PACKET = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk={toolkit}>
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:Iptc4xmpCore="http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
    xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"{writer}
    xmp:MetadataDate={date}>
{texts}  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""
_TEXT = """\
   <{name}><rdf:Alt><rdf:li xml:lang="x-default">{text}</rdf:li></rdf:Alt></{name}>
"""


@dataclass(frozen=True)
class Xmp(SidecarFormat):
    """``NAME.xmp`` for each captioned record.

    The caption's writer is the model, unless it came from a file.  Nothing is said of where the picture comes from: to
    IPTC, a digital source type of a trained algorithm would say that the picture itself was made by one.
    """

    name = "xmp"
    help = (
        "`NAME.xmp` for each captioned record: the caption as `dc:description`, as `Iptc4xmpCore:AltTextAccessibility` "
        "(at most 250 characters of it) and, where it is longer, `Iptc4xmpCore:ExtDescrAccessibility`; the model as "
        "`photoshop:CaptionWriter`"
    )
    shard_suffix = ".xmp"

    def content(self, record: Joined) -> bytes:
        """Return the packet, as the same caption always gives it."""
        caption = _NO_XML.sub("", record.row.text or "").strip()
        alt = _shortened(" ".join(caption.split()))
        texts = {"dc:description": caption, "Iptc4xmpCore:AltTextAccessibility": alt}
        if len(caption) > _ALT_TEXT:
            texts["Iptc4xmpCore:ExtDescrAccessibility"] = caption
        writer = "" if record.is_given else quoteattr(_NO_XML.sub("", f"{record.recipe} (a machine)"))
        return _PACKET.format(
            toolkit=quoteattr(f"{_TOOLKIT} {__version__}"),
            writer=writer and f"\n    photoshop:CaptionWriter={writer}",
            date=quoteattr(iso_utc(record.row.done_at or 0)),
            texts="".join(_TEXT.format(name=name, text=escape(text)) for name, text in texts.items()),
        ).encode()

    def is_own(self, content: bytes, *_: object) -> bool:
        """Return whether it is one of this program's: others keep people's work on a picture in such files."""
        return f'x:xmptk="{_TOOLKIT}'.encode() in content


def _shortened(text: str) -> str:
    """Return whole sentences of a text that is too long, or words where the first sentence is."""
    if len(text) <= _ALT_TEXT:
        return text
    if sentences := re.match(rf".{{1,{_ALT_TEXT - 1}}}[.!?](?=\s)", text):
        return sentences[0]
    return f"{text[:_ALT_TEXT].rpartition(' ')[0] or text[: _ALT_TEXT - 1]}…"


FORMAT = Xmp
