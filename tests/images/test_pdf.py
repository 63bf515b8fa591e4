"""What lies above a PDF's page: form fields and annotations."""

import logging
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from etl.images.decode import decode


def pdf(annotation: bytes, *others: bytes, form: bytes = b"") -> bytes:
    """A white page of 100 x 100 with one annotation, object 4."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R%s>>" % (b"/AcroForm<</Fields[4 0 R]%s>>" % form if form else b""),
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 100]/Annots[4 0 R]>>",
        b"<</Type/Annot/Rect[10 10 90 90]%s>>" % annotation,
        *others,
    ]
    numbered = b"".join(b"%d 0 obj\n%s\nendobj\n" % pair for pair in enumerate(objects, 1))
    return b"%PDF-1.7\n" + numbered + b"trailer<</Root 1 0 R>>\n%%EOF\n"


RED_BOX = b"<</Type/XObject/Subtype/Form/BBox[0 0 80 80]/Length 25>>stream\n1 0 0 rg 0 0 80 80 re f  \nendstream"
FONTS = b"/DA(/F 40 Tf 1 0 0 rg)/DR<</Font<</F<</Type/Font/Subtype/Type1/BaseFont/Helvetica-Bold>>>>>>"
TEXT = b"/Subtype/Widget/FT/Tx/T(a)/F 4/V(MMM)"
ABOVE = {
    "a field with its looks": pdf(TEXT + b"/AP<</N 5 0 R>>", RED_BOX, form=b"/DA()"),
    "a field of words alone": pdf(TEXT + b"/DA(/F 40 Tf 1 0 0 rg)", form=b"/NeedAppearances true" + FONTS),
    "a field beside XFA": pdf(TEXT + b"/AP<</N 5 0 R>>", RED_BOX, form=b"/DA()/XFA(<a/>)"),
    "a stamp": pdf(b"/Subtype/Stamp/F 4/AP<</N 5 0 R>>", RED_BOX),
}


@pytest.mark.parametrize("kind", ABOVE)
def test_fields_and_annotations_are_drawn(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a viewer shows above the page is on the picture, and no library says anything."""
    (tmp_path / "a.pdf").write_bytes(ABOVE[kind])
    with caplog.at_level(logging.DEBUG):
        image = decode(tmp_path / "a.pdf", longest_edge=100, max_pixels=10**6).image
    red, green, blue = (band.point(lambda value: value > 128 and 255) for band in image.split())
    assert ImageChops.subtract(red, ImageChops.lighter(green, blue)).histogram()[255] > 300
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("form", [b"/Fields 7/CO[4 0 R 9 0 R]", b"/Fields[[[4 0 R]]]/XFA[(a) 1 0 R]"])
def test_a_broken_form_does_not_cost_the_page(tmp_path: Path, form: bytes) -> None:
    """A page whose form is nonsense is drawn without it."""
    data = ABOVE["a stamp"].replace(b"/Pages 2 0 R", b"/Pages 2 0 R/AcroForm<<%s>>" % form, 1)
    (tmp_path / "a.pdf").write_bytes(data)
    image: Image.Image = decode(tmp_path / "a.pdf", longest_edge=100, max_pixels=10**6).image
    assert image.getpixel((50, 50)) == (255, 0, 0)


def test_the_first_of_several_pages_is_told(tmp_path: Path) -> None:
    """A flag says that the document has more than what is shown."""
    data = ABOVE["a stamp"]
    for pages, flags in ((data, set()), (data.replace(b"[3 0 R]/Count 1", b"[3 0 R 3 0 R]/Count 2"), {"pages"})):
        (tmp_path / "a.pdf").write_bytes(pages)
        assert decode(tmp_path / "a.pdf", longest_edge=100, max_pixels=10**6).flags == flags
