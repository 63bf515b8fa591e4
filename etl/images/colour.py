"""Any mode that Pillow can load -> 8-bit RGB with the colours, tones and orientation that were meant."""

import io
import itertools

from PIL import Image, ImageCms, ImageMath

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what puts the picture upright (Exif 2.32, tag 0x0112)."""

_FLOAT32_MAX = 3.4e38
_FULL_RANGE = 65535.0
"""Value that means white in a picture without any contrast, whose own range says nothing; or 1, if it has no more."""

_PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_SRGB_NAMES = ("sRGB IEC61966", "sRGB built-in")
"""What the profiles of cameras and of Little CMS call sRGB; a conversion to itself would double the work."""


def reducible(image: Image.Image, floor: float | None = None) -> Image.Image:
    """Return the loaded picture in a mode whose pixels can be averaged.

    Wide gray ends as ``I`` or ``F`` (see `stretch`); palettes, bilevel pictures and colour keys are resolved.  What is
    not finite in an ``F`` picture becomes ``floor``, or else the picture's lowest finite value.
    """
    if image.mode.startswith("I;16"):
        return image.convert("I")
    if image.mode == "F":
        return _filled(image, floor)
    if image.mode == "I":
        # Pillow adds integers up in 32 bits, of which these may need all.
        return image.convert("F")
    if image.has_transparency_data:
        return image if image.mode in ("LA", "RGBA", "La", "RGBa") else image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "PA", "RGBX"):
        return image.convert("RGB")
    return image


def stretch(image: Image.Image, *, min_is_white: bool = False) -> Image.Image:
    """Return an ``I`` or ``F`` picture as ``L``, its darkest value black and its lightest white.

    The range that is used counts, not the one that the type could hold: 12-bit scans stored in 16 bits would be
    nearly black.  ``min_is_white`` inverts.
    """
    low, high = image.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if low == high:
        white = _FULL_RANGE if image.mode == "I" or low > 1 else 1.0
        level = 255 * min(max(low / white, 0.0), 1.0)
        return Image.new("L", image.size, round(255 - level if min_is_white else level))
    if min_is_white:
        low, high = high, low
    # As float: the integer form of this arithmetic would overflow.
    scale = 255 / (float(high) - float(low))
    offset = 0.5 - low * scale
    return image.convert("F").point(lambda value: value * scale + offset).convert("L")


def opaque(image: Image.Image) -> Image.Image:
    """Return the picture without transparency, over white."""
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode not in ("LA", "RGBA"):
        return image
    plain = "L" if image.mode == "LA" else "RGB"
    page = Image.new(plain, image.size, "white")
    page.paste(image.convert(plain), mask=image.getchannel("A"))
    return page


def to_rgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """Return the opaque picture as sRGB, the embedded profile applied where it fits.

    A broken or ill-fitting profile is passed over: the plain conversion is closer than no picture.
    """
    if icc_profile and image.mode in _PROFILE_SPACES:
        converted = _through_profile(image, icc_profile)
        if converted is not None:
            return converted
    return image if image.mode == "RGB" else image.convert("RGB")


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return the picture turned as its EXIF orientation (1 to 8; anything else means 1) says."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def lowest_finite(image: Image.Image) -> float | None:
    """Return the lowest value of an ``F`` picture that is neither NaN nor (nearly) infinite, or ``None``."""
    mask = _finite(image)
    if mask.getextrema() == (0, 0):
        return None
    ceiling = Image.new("F", image.size, _FLOAT32_MAX)
    ceiling.paste(image, mask=mask)
    low = ceiling.getextrema()[0]
    assert isinstance(low, float)
    return low


def _filled(image: Image.Image, floor: float | None) -> Image.Image:
    mask = _finite(image)
    if mask.getextrema() == (255, 255):
        return image
    if floor is None:
        floor = lowest_finite(image) or 0.0
    filled = Image.new("F", image.size, floor)
    filled.paste(image, mask=mask)
    return filled


def _finite(image: Image.Image) -> Image.Image:
    """Return a mask of the ``F`` picture's finite values."""
    # x - x is NaN exactly where x is not finite, and NaN differs from itself.  Ten times the largest numbers are
    # infinite: they stand for no data in maps.
    marks: Image.Image = ImageMath.lambda_eval(
        lambda args: (args["x"] * 10 - args["x"] * 10) == (args["x"] * 10 - args["x"] * 10), x=image
    )
    return marks.convert("L").point(lambda value: 255 if value else 0)


def _is_sound(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether a ramp from black to white comes out as one, give or take a few levels."""
    levels = range(0, 256, 15)
    pixels = [(0, 0, 0, 255 - level) if mode == "CMYK" else (level,) * len(mode) for level in levels]
    ramp = Image.frombytes(mode, (len(levels), 1), bytes(itertools.chain(*pixels)))
    shown = ImageCms.applyTransform(ramp, transform)
    assert shown is not None
    tones = list(shown.convert("L").tobytes())
    return tones[0] < tones[-1] and all(after > before - 9 for before, after in itertools.pairwise(tones))


def _through_profile(image: Image.Image, icc_profile: bytes) -> Image.Image | None:
    """Return the picture in sRGB, or ``None`` when the profile is broken or of another colour space."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        if profile.profile.xcolor_space.strip() != _PROFILE_SPACES[image.mode]:
            return None
        if image.mode == "RGB" and (profile.profile.profile_description or "").startswith(_SRGB_NAMES):
            return image
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        # Profiles without primaries, for one, are opened without complaint and give noise.
        return ImageCms.applyTransform(image, transform) if _is_sound(transform, image.mode) else None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
