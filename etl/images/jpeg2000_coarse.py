"""JPEG 2000 whose colours have one sample for two or four pixels, of a size that these do not divide evenly.

Pillow garbles them, for it rounds the number of samples down.  PDFium does not.  Imported only where one is met.
"""

import pypdfium2
from PIL import Image

from etl.confinement import room
from etl.errors import CorruptImageError

_PIXEL_BYTES = 20
"""That PDFium takes for a pixel: it ends its process where there is no memory."""

_NOTHING = (255, 0, 255, 255)
_PAGE = b"""%%PDF-1.7
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 %d %d]/Contents 4 0 R/Resources<</XObject<</I 5 0 R>>>>>>endobj
4 0 obj<</Length 50>>stream
q %d 0 0 %d 0 0 cm /I Do Q
endstream endobj
5 0 obj<</Type/XObject/Subtype/Image/Width %d/Height %d/Filter/JPXDecode/Length %d>>stream
%s
endstream endobj
trailer<</Root 1 0 R>>
%%%%EOF
"""


def drawn(data: bytes, size: tuple[int, int], levels: int, longest_edge: int) -> Image.Image:
    """Return the codestream's picture in RGB: no larger than twice ``longest_edge``, or halved ``levels`` times.

    Raises `CorruptImageError` where PDFium draws nothing, `MemoryError` where there may be too little for it.
    """
    if size[0] * size[1] * _PIXEL_BYTES > room():
        raise MemoryError
    with pypdfium2.PdfDocument(_PAGE % (*size, *size, *size, len(data), data)) as document:
        # It skips as many levels as it is asked to halve, and draws nothing where there are fewer.
        scale = min(1, max(2 * longest_edge / max(size), 0.5**levels))
        bitmap = document[0].render(scale=scale, fill_color=_NOTHING)
        image: Image.Image = bitmap.to_pil().convert("RGB")
    if image.getcolors(1) == [(image.width * image.height, _NOTHING[:3])]:
        raise CorruptImageError("the JPEG 2000 has pixels that are damaged or cut short")
    return image
