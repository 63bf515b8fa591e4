"""Image flags in the state: what the decoder said, and which pictures stand in for others."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlite_utils import Database
from support.states import assert_sound, fetched, put_sources, settings_for

from etl.domain.items import FetchedImage, SourceItem
from etl.domain.statuses import Stage
from etl.state.database import DATABASE_NAME
from etl.state.images import PLACEHOLDER_URLS
from etl.state.migrations import migrations
from etl.state.store import Store


def flagged(source: SourceItem, content: str, *flags: str) -> FetchedImage:
    """Return a fetched image about which the decoder said this."""
    image = fetched(source, content)
    return dataclasses.replace(image, decoded=dataclasses.replace(image.decoded, flags=flags))


def fetch(store: Store, contents: Sequence[str], *flags: str) -> None:
    """Fetch all that is due, one commit each; in the order of the records, they give these bytes."""
    with store.run((Stage.FETCH,)) as run:
        queue = store.sources(run)
        items = [item for host in queue.ready_hosts() for item in queue.claim(host, 1000)]
        for item, content in zip(sorted(items, key=lambda item: item.id), contents, strict=True):
            assert queue.commit([flagged(item, content, *flags)]) == 1


def stored(store: Store) -> dict[str, int]:
    """Return how many images have which flags."""
    return dict(store._connection.rows("SELECT flags, count(*) FROM images GROUP BY flags"))


def urls(host: str, n: int) -> list[str]:
    return [f"http://{host}/{number}.jpg" for number in range(n)]


@pytest.mark.parametrize(("sources", "flags"), [
    (urls("a.example", PLACEHOLDER_URLS), "placeholder"),
    (urls("a.example", PLACEHOLDER_URLS - 1), ""),
    (urls("a.example", PLACEHOLDER_URLS - 1) + urls("b.example", PLACEHOLDER_URLS - 1), ""),
    ([f"http://{n}.example/same.jpg" for n in range(3 * PLACEHOLDER_URLS)], ""),
    ([*urls("b.example", 2), *urls("a.example", PLACEHOLDER_URLS + 3)], "placeholder"),
    (["http://a.example/1.jpg"] * 3 * PLACEHOLDER_URLS, ""),
])  # fmt: skip
def test_one_picture_under_many_urls_of_a_host_is_a_placeholder(store: Store, sources: list[str], flags: str) -> None:
    """Counted are the distinct URLs of one host: neither records that share one, nor hosts that share a picture."""
    put_sources(store, *sources)
    fetch(store, ["the same"] * len(set(sources)))
    assert stored(store) == {flags: 1}
    assert_sound(store.directory)


def test_a_placeholder_is_told_when_more_urls_come(store: Store) -> None:
    """The URLs of a later manifest count with those that were fetched before."""
    put_sources(store, *urls("a.example", PLACEHOLDER_URLS - 1))
    fetch(store, ["the same"] * (PLACEHOLDER_URLS - 1))
    assert stored(store) == {"": 1}
    put_sources(store, *urls("a.example", PLACEHOLDER_URLS + 1))
    fetch(store, ["the same", "another"])
    assert stored(store) == {"placeholder": 1, "": 1}


def test_what_the_decoder_says_is_stored_and_renewed(store: Store) -> None:
    """Decoded anew, a picture has the flags of that; it stays a placeholder when its other URLs give more pictures."""
    put_sources(store, *urls("a.example", PLACEHOLDER_URLS))
    fetch(store, ["the same"] * PLACEHOLDER_URLS, "blank", "tiny")
    assert stored(store) == {"blank,tiny,placeholder": 1}
    with store.run((Stage.FETCH,)) as run:
        store.sources(run).refresh()
    others = [f"picture {n}" for n in range(1, PLACEHOLDER_URLS)]
    fetch(store, ["the same", *others])
    store.images().requeue_missing([1])
    fetch(store, ["the same"], "truncated")
    assert stored(store) == {"truncated,placeholder": 1, "": len(others)}


def test_pictures_of_an_earlier_schema_are_flagged(state: Path) -> None:
    """What its rows can tell is flagged when it is brought up to date: tiny pictures, and placeholders."""
    state.mkdir()
    old = Database(state / DATABASE_NAME)
    migrations.apply(old, stop_before="0008_image_flags")
    for image, (width, height, n) in enumerate([(800, 600, 4), (800, 600, 5), (16, 40, 1), (1, 1, 6)], 1):
        old.execute(
            "INSERT INTO images (id, sha256, bytes, mime, width, height, working_sha256, working_bytes, working_width, "
            "working_height, longest_edge, original_kept) VALUES (?, ?, 9, 'image/gif', ?, ?, 'w', 9, 1, 1, 1024, 0)",
            (image, f"{image}", width, height),
        )
        for number in range(n):
            url = f"http://a.example/{image}-{number}.gif"
            old.execute(
                "INSERT INTO sources (url, host, status, image) VALUES (?, 'a.example', 'done', ?)", (url, image)
            )
    old.conn.commit()
    old.close()
    with Store.open(settings_for(state)) as store:
        flags = [row[0] for row in store._connection.rows("SELECT flags FROM images ORDER BY id")]
    assert flags == ["", "placeholder", "tiny", "placeholder,tiny"]
