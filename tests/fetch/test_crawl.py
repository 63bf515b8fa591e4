"""Many hosts at once, each a name with an address of its own."""

from pathlib import Path

import pytest

from benchmarks.fetch.crawl import measure


@pytest.mark.soak
def test_a_crawl_that_was_killed_keeps_each_host_s_limit(tmp_path: Path) -> None:
    """Killed in the middle, it fetches all, asks again only for what was in flight, and never too much at once.

    Each robots.txt of more than a thousand is asked for once by each of the two processes.
    """
    assert measure(tmp_path, 1200, 3600, kill=True, robots=True)
