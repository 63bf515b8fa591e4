"""The first page of a PDF.  Imported only where one is met, because most decoder processes never meet any."""

import contextlib
import logging
from pathlib import Path

import pypdfium2
from PIL import Image

from etl.errors import CorruptImageError

# It would say of each XFA form that it draws the plain fields beside it.
logging.getLogger("pypdfium2").setLevel(logging.ERROR)

_TAIL_BYTES = 1024
"""Where Acrobat looks for the end marker (ISO 32000-1, note 18 of annex H)."""

_READ_AT_ONCE = 1 << 20
"""Bytes below which a file is read whole, instead of where PDFium wants."""


def first_page(path: Path, longest_edge: int) -> Image.Image:
    """Return the first page in RGB, its longer side ``longest_edge`` pixels or, rounded up, one more.

    Its ``info`` says under ``pages`` how many there are.  Form fields and annotations are drawn as a viewer shows them.

    Raises `CorruptImageError` for a file that was cut short or has no page, and whatever PDFium raises.
    """
    # What is in memory alone has no path that pypdfium2 could resolve.
    document = pypdfium2.PdfDocument(path.read_bytes() if path.stat().st_size < _READ_AT_ONCE else path)
    with contextlib.closing(document):
        # PDFium mends the table that is the end of each file: a page cut short would come out white.
        if not pypdfium2.raw.FPDF_DocumentHasValidCrossReferenceTable(document) and not _has_end(path):
            raise CorruptImageError("the PDF is cut short")
        # Before a page is loaded, or else its fields are not drawn.  Fields that are broken do not cost the page.
        with contextlib.suppress(pypdfium2.PdfiumError):
            document.init_forms()
        if len(document) == 0:
            raise CorruptImageError("the PDF has no pages")
        page = document[0]
        with contextlib.closing(page):
            longest = max(page.get_size())
            if not 0 < longest < float("inf"):
                raise CorruptImageError(f"the PDF's first page has the size {page.get_size()}")
            bitmap = page.render(scale=longest_edge / longest)
            with contextlib.closing(bitmap):
                image: Image.Image = bitmap.to_pil().convert("RGB")
                image.info["pages"] = len(document)
                return image


def _has_end(path: Path) -> bool:
    """Return whether the file ends with a PDF's last line, give or take what viewers put up with."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return b"%%EOF" in file.read()
