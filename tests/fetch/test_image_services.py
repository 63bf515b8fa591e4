"""Image services of IIIF are asked for pictures of the size that is needed, and for what they allow."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.iiif_server import ImageArchive, Served
from support.workbench import Workbench

from etl.cli.record_story import story_lines
from etl.domain.views import StageSummary
from etl.fetch.image_services import MAX_INFO
from etl.net.iiif import Service

V2, V3 = "full/full/0/default.jpg", "full/max/0/default.jpg"


class Case(NamedTuple):
    """A service, the paths below it that a list names, and what is asked for in the end."""

    served: Served
    named: tuple[str, ...]
    asked: tuple[str, ...]


def served(version: int = 3, level: int = 2, width: int = 900, height: int = 600, **more: object) -> Served:
    return Served(version=version, level=level, width=width, height=height, **more)  # type: ignore[arg-type]


def sized(size: str) -> str:
    return f"full/{size}/0/default.jpg"


CASES = {
    "level-2": Case(served(), (V3,), ("info.json", sized("!256,256"))),
    "level-2-of-2": Case(served(2), (V2,), ("info.json", sized("!256,256"))),
    "level-1": Case(served(level=1), (V3,), ("info.json", sized("256,"))),
    "level-1-upright": Case(served(2, 1, 600, 900), (V2,), ("info.json", sized("171,"))),
    "level-0": Case(
        served(level=0, sizes=((90, 60), (300, 200), (600, 400))), (V3,), ("info.json", sized("300,200"))
    ),
    "level-0-canonical": Case(
        served(2, 0, sizes=((300, 200),), refuses="300,200"), (V2,), ("info.json", sized("300,200"), sized("300,"), V2)
    ),
    "level-0-too-small": Case(served(level=0, sizes=((90, 60),)), (V3,), ("info.json", V3)),
    "features": Case(
        served(level=0, more={"extraFeatures": ["sizeByConfinedWh"]}), (V3,), ("info.json", sized("!256,256"), V3)
    ),
    "small": Case(served(width=200, height=100), (V3,), ("info.json", V3)),
    "limited": Case(served(more={"maxWidth": 200, "maxHeight": 100}), (V3,), ("info.json", sized("!200,100"))),
    "area": Case(served(more={"maxArea": 60000}), (V3,), ("info.json", sized("!256,200"))),
    "refuses": Case(served(refuses="!"), (V3,), ("info.json", sized("!256,256"), V3)),
    "another-size": Case(served(), (sized("500,"),), (sized("500,"),)),
    "part": Case(served(), ("0,0,800,400/max/0/default.jpg",), ("info.json", "0,0,800,400/!256,256/0/default.jpg")),
    "info": Case(served(), ("info.json",), ("info.json", sized("!256,256"))),
    "uri": Case(served(2), ("",), ("", "info.json", sized("!256,256"))),
}  # fmt: skip


ALIKE = {"three": served(), "two": served(2), "liar": served(refuses="!")}
MIXED = [served(level=level, sizes=((300, 200),)) for level in (2, 1, 0, 2)]


class Fetched(NamedTuple):
    """What one fetch from an archive of all these services came to: the requests, and what the state says."""

    asked: list[str]
    summary: StageSummary
    rows: list[tuple[str, str | None]]
    parts: list[Path]

    def of(self, site: str) -> list[str]:
        """Return the paths that a site was asked for."""
        return [path.removeprefix(f"/{site}/") for path in self.asked if path.startswith(f"/{site}/")]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Fetched:
    bench = Workbench(tmp_path_factory.mktemp("services"), concurrency=1)
    with ImageArchive() as archive:
        archive.pictures = {f"/{name}/1": case.served for name, case in CASES.items()}
        archive.pictures |= {f"/{site}/{n}": one for site, one in ALIKE.items() for n in range(6)}
        archive.pictures |= {f"/mixed/{n}": one for n, one in enumerate(MIXED)}
        urls = [f"{archive.base}/{name}/1/{path}".rstrip("/") for name, case in CASES.items() for path in case.named]
        urls += [f"{archive.base}{path}/{V2 if 'two' in path else V3}" for path in [*archive.pictures][len(CASES) :]]
        del archive.pictures["/three/0"]
        bench.ingest(*urls)
        summary = bench.fetch()
        rows = bench.rows("SELECT url, final_url FROM sources ORDER BY id")
        assert [url for url, _ in rows] == urls
        return Fetched(archive.asked, summary, rows, bench.files("parts"))


def test_what_each_service_is_asked_for(fetched: Fetched) -> None:
    """The smallest that is large enough and allowed; the source stays the URL that the list has."""
    assert fetched.summary == StageSummary(done=len(fetched.rows) - 1, dead=1)
    asked = {name: tuple(path.removeprefix("1").lstrip("/") for path in fetched.of(name)) for name in CASES}
    assert asked == {name: case.asked for name, case in CASES.items()}
    assert not fetched.parts


def test_what_one_picture_tells_of_the_others(fetched: Fetched) -> None:
    """In 3 the level is enough, and asked for once; in 2 a small picture might come enlarged; refusals count."""
    infos = {site: sum("info" in path for path in fetched.of(site)) for site in ALIKE}
    assert (infos["three"], infos["two"]) == (2, 6)
    # One picture is taken up ahead, before it is known how the one before it fared.
    assert 1 <= infos["liar"] <= 3
    assert 1 <= sum("!256" in path for path in fetched.of("liar")) <= 3


def test_each_picture_of_a_site_may_have_another_level(fetched: Fetched) -> None:
    """Where what one has told is refused by another, that one is asked itself."""
    sizes = ("!256,256", "256,", "300,200", "!256,256")
    found = [str(final).partition("/mixed/")[2] for url, final in fetched.rows if "/mixed/" in url]
    assert found == [f"{n}/{sized(size)}" for n, size in enumerate(sizes)]


@pytest.fixture
def archive() -> Iterator[ImageArchive]:
    with ImageArchive() as running:
        yield running


def test_a_manifest_says_enough(archive: ImageArchive, tmp_path: Path) -> None:
    """What stands in a manifest is not asked for; a static picture's service is; with originals all is as written."""
    archive.pictures = {"/i/1": served(), "/i/2": served(2, 1), "/i/3": served()}
    archive.documents["/3.jpg"] = 404
    base = archive.base
    blocks = (
        {"id": f"{base}/i/1", "type": "ImageService3", "profile": "level2"},
        {
            "@id": f"{base}/i/2",
            "@context": "http://iiif.io/api/image/2/context.json",
            "profile": "http://iiif.io/api/image/2/level1.json",
        },
        {"id": f"{base}/i/3", "type": "ImageService3"},
    )
    bodies = [
        {"id": f"{base}/i/1/{sized('800,')}", "type": "Image", "service": [blocks[0]]},
        {"id": f"{base}/i/2/{V2}", "type": "Image", "width": 900, "height": 600, "service": [blocks[1]]},
        {"id": f"{base}/3.jpg", "type": "Image", "service": [blocks[2]]},
    ]
    canvases = [
        {"id": f"c{n}", "type": "Canvas", "items": [{"items": [{"body": body}]}]} for n, body in enumerate(bodies)
    ]
    path = tmp_path / "manifest.json"
    path.write_text(
        json.dumps(
            {"@context": "http://iiif.io/api/presentation/3/context.json", "type": "Manifest", "items": canvases}
        )
    )
    bench = Workbench(tmp_path, per_host=1)
    bench.ingest_path(str(path))
    assert bench.fetch() == StageSummary(done=3)
    assert archive.asked == [
        f"/i/1/{sized('!256,256')}",
        f"/i/2/{sized('256,')}",
        "/i/3/info.json",
        f"/i/3/{sized('!256,256')}",
    ]
    archive.asked.clear()
    assert bench.fetch(refresh=True, keep_originals=True) == StageSummary(done=2, dead=1)
    assert sorted(archive.asked) == ["/3.jpg", f"/i/1/{sized('800,')}", f"/i/2/{V2}"]


def test_a_manifest_is_no_picture(archive: ImageArchive, tmp_path: Path) -> None:
    """The URL of a manifest in a list fails with what to do, and `etl why` tells what a service was asked for."""
    archive.documents["/m"] = {"@context": "http://iiif.io/api/presentation/3/context.json", "type": "Manifest"}
    archive.pictures["/i/1"] = served()
    bench = Workbench(tmp_path)
    bench.ingest(f"{archive.base}/m", f"{archive.base}/i/1")
    assert bench.fetch() == StageSummary(done=1, dead=1)
    [(error,)] = bench.rows("SELECT error FROM sources WHERE error_class = 'not_an_image'")
    assert "etl ingest URL" in error
    assert any(line.endswith(sized("!256,256")) for line in story_lines(bench.story("r1")))


def test_an_info_json_of_a_stranger(archive: ImageArchive, tmp_path: Path) -> None:
    """It may lie, lead to private addresses, be no JSON or very deep: the picture is fetched as the list has it."""
    lies: dict[str, object] = {
        "elsewhere": {**served().info("http://10.0.0.1/i"), "sizes": [{"width": 300, "height": "1/../../x"}]},
        "numbers": {**served().info(archive.base), "width": -1, "height": 1e300, "maxArea": "nan", "sizes": 3},
        "deep": b"[" * 100_000,
        "long": b"x" * (MAX_INFO + 9),
    }
    for site, info in lies.items():
        archive.pictures[f"/{site}/1"] = served(refuses="!")
        archive.documents[f"/{site}/1/info.json"] = info
    bench = Workbench(tmp_path)
    bench.ingest(*(f"{archive.base}/{site}/1/{V3}" for site in lies), f"{archive.base}/elsewhere/1/info.json")
    assert bench.fetch() == StageSummary(done=len(lies) + 1)
    assert all(path.count("/") == 6 for path in archive.asked if "info" not in path)


WIDE = {"width": 2000, "height": 1000}
STANFORD = "http://library.stanford.edu/iiif/image-api/1.1"
SUPPORTS = ["http://iiif.io/api/image/2/level0.json", {"supports": ["sizeByW"]}]
SIZES = [{"width": 1000, "height": 500}, {"width": -1}, 3]
BLOCKS: list[tuple[dict[str, object], list[str] | None]] = [
    ({"@context": f"{STANFORD}/context.json", "profile": f"{STANFORD}/compliance.html#level1", **WIDE}, ["500,"]),
    ({"@type": "ImageService2", "profile": SUPPORTS, "width": "2000", "height": 1000.0}, ["500,"]),
    ({"type": "ImageService3", "profile": "level2"}, ["!500,500"]),
    ({"type": "ImageService2", "profile": "level2"}, None),
    ({"type": "ImageService3", "profile": "level1"}, None),
    ({"type": "ImageService3", "profile": "level0", **WIDE}, None),
    ({"type": "ImageService3", "profile": "level0", **WIDE, "sizes": SIZES}, ["1000,500", "1000,"]),
    ({"type": "ImageService3", "profile": "level2", **WIDE, "maxArea": 40_000}, ["!282,141"]),
    ({"type": "ImageService3", "profile": "level2", "maxArea": 40_000}, ["!200,200"]),
    ({"type": "ImageService3", "profile": "level2", "width": 400, "height": 300}, []),
]  # fmt: skip


@pytest.mark.parametrize(("block", "sizes"), BLOCKS)
def test_what_a_service_allows(block: dict[str, object], sizes: list[str] | None) -> None:
    """Versions, levels, features and sizes as manifests write them; none where the service must be asked first."""
    service = Service.of({"@id": "http://a.example/i/1/", **block})
    assert service is not None and service.base == "http://a.example/i/1"
    assert service.sizes_for(500, asked=False) == sizes


AUTH = {"id": "http://a.example/auth", "type": "AuthCookieService1", "profile": "login"}


@pytest.mark.parametrize("value", [None, 3, [], {}, {"@id": "x"}, {"id": "file:///etc", "type": "ImageService3"}, AUTH])
def test_what_is_no_image_service(value: object) -> None:
    """Services of other kinds, and what is none, are passed over."""
    assert Service.of(value) is None
