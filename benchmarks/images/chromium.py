"""What Chromium shows of files: it is asked for many at once, for it takes a second to start."""

import base64
import contextlib
import io
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from PIL import Image

COMMAND = shutil.which("chromium") or shutil.which("google-chrome")

_AT_ONCE = 32
_TIMEOUT_S = 90.0

_PAGE = """<!doctype html><body>%s<script>
function small(image) {
  if (!image.naturalWidth) return null;
  const scale = Math.min(1, %d / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = document.createElement("canvas"), page = canvas.getContext("2d");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  page.fillStyle = "white";
  page.fillRect(0, 0, canvas.width, canvas.height);
  page.imageSmoothingQuality = "high";
  page.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL().split(",")[1];
}
onload = () => {
  const shown = [...document.images].map(image => { try { return small(image) } catch { return null } });
  document.body.textContent = "shown" + JSON.stringify(shown);
};
</script>"""


def see(paths: list[Path], longest_edge: int) -> Iterator[tuple[Path, Image.Image | None]]:
    """Yield each file with what Chromium shows of it in an ``<img>``, in sRGB over white; nothing where it dies."""
    for first in range(0, len(paths), _AT_ONCE):
        batch = paths[first : first + _AT_ONCE]
        shown = _shown(batch, longest_edge)
        if shown is None:
            # One of them costs it its life, or takes too long.
            yield from ((path, (_shown([path], longest_edge) or [None])[0]) for path in batch)
        else:
            yield from zip(batch, shown, strict=True)


def _shown(paths: list[Path], longest_edge: int) -> list[Image.Image | None] | None:
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        tags = "".join(f'<img src="file://{quote(str(path))}">' for path in paths)
        page.write_text(_PAGE % (tags, longest_edge))
        # As root its sandbox does not start; give it only files that you trust as far as that.
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
        command = ["nice", "-n", "15", COMMAND or "", *options, f"--user-data-dir={folder}/profile", page.as_uri()]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
            _, found, rest = done.stdout.partition(">shown")
            if found:
                return [encoded and _image(encoded) for encoded in json.loads(rest.partition("]")[0] + "]")]
    return None


def _image(encoded: str) -> Image.Image:
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        return image.convert("RGB")
