"""A state for all who only look, and a browser to look with."""

import shutil
from collections.abc import Iterator

import pytest
from support.made_state import MadeState
from support.reported import make_state


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> MadeState:
    """One state for all who only look."""
    return make_state(tmp_path_factory.mktemp("report"), gpu_price=36_000)


# Playwright's event loop runs in this thread as long as the fixture lives, and other tests want one of their own.
@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    """A headless Chromium without a network; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
