"""Addresses made from a URL or from a record."""

import json

import pytest

from etl.errors import ConfigError
from etl.fetch.mirrors import Address, Mirrors

URL = "http://slow.example/photos/a b.jpg"
OWN = Address(URL, "slow.example", is_mirror=False)


def _line(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def _mirrors_of(rewrites: tuple[str, ...] = (), template: str = "", line: bytes | None = None) -> list[str]:
    return [one.url for one in Mirrors(rewrites, template).addresses(URL, "slow.example", line) if one.is_mirror]


def test_without_any_a_source_has_its_own_address() -> None:
    """Nothing configured means one address, and no need of the record."""
    mirrors = Mirrors(())
    assert not mirrors
    assert not mirrors.needs_record
    assert mirrors.addresses(URL, "slow.example") == [OWN]


def test_a_rewrite_makes_an_address_with_groups() -> None:
    """The pattern's groups appear in the replacement, which may have `=` and a query of its own."""
    rewrite = r"^http://slow\.example/(.*)$=https://fast.example/get?file=\1"
    assert Mirrors((rewrite,)).addresses(URL, "slow.example") == [
        OWN, Address("https://fast.example/get?file=photos/a b.jpg", "fast.example", is_mirror=True),
    ]  # fmt: skip


def test_rewrites_that_do_not_fit_give_nothing() -> None:
    """A pattern that is not found, a result that is the same URL and one that is none are passed over; order stays."""
    rewrites = ("nowhere=x", "slow=slow", "http:=gopher:", "slow=one", "slow=two", "^.*$=/data/a.jpg")
    assert _mirrors_of(rewrites) == [
        "http://one.example/photos/a b.jpg", "http://two.example/photos/a b.jpg", "/data/a.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "address"),
    [
        ("https://store.example/{file}", "https://store.example/d%C3%A9p%C3%B4t/a%20b%231.jpg"),
        ("https://store.example/{portal.Fichier jpg - 200 dpi}", "https://store.example/x.jpg"),
        ("https://store.example/{number}.jpg", "https://store.example/7.jpg"),
        ("{portal.whole}", "https://other.example/w.jpg?k=1"),
        ("/data/{file}", "/data/dépôt/a b#1.jpg"),
    ],
)
def test_a_template_is_filled_from_the_record(template: str, address: str) -> None:
    """Values are percent-encoded in a URL, but for their slashes; a path and a field that is the whole stay raw."""
    portal = {"Fichier jpg - 200 dpi": "x.jpg", "whole": "https://other.example/w.jpg?k=1"}
    line = _line(file="dépôt/a b#1.jpg", number=7, portal=portal)
    assert _mirrors_of(template=template, line=line) == [address]


@pytest.mark.parametrize("line", [_line(), _line(file=None), _line(file="  "), _line(file=True), _line(file=[1]), None])
def test_a_record_without_the_field_has_no_such_mirror(line: bytes | None) -> None:
    """A missing or empty field gives no address instead of a wrong one."""
    assert _mirrors_of(template="https://store.example/{file}", line=line) == []


def test_a_record_names_no_file_above_the_template() -> None:
    """A path out of the mirror's directory is not made, since a manifest may come from a stranger."""
    assert _mirrors_of(template="/data/{file}", line=_line(file="../secret.jpg")) == []


def test_mirrors_come_first_when_preferred() -> None:
    """With `prefer`, the source's own address is the last one asked."""
    found = Mirrors(("slow=fast",), prefer=True).addresses(URL, "slow.example")
    assert [one.is_mirror for one in found] == [True, False]


@pytest.mark.parametrize(
    ("rewrites", "template", "prefer", "complaint"),
    [
        (("no-equals-sign",), "", False, "REGEX=REPLACEMENT"),
        (("=x",), "", False, "REGEX=REPLACEMENT"),
        (("(=x",), "", False, "rewrite_url"),
        ((r"a=\1",), "", False, "invalid group reference"),
        ((), "https://store.example/", False, "names no field"),
        ((), "https://store.example/{}", False, "names no field"),
        ((), "", True, "neither rewrite_url nor mirror_template"),
    ],
)
def test_what_cannot_work_is_refused(rewrites: tuple[str, ...], template: str, prefer: bool, complaint: str) -> None:
    """A mirror that is wrongly given ends the command before any request, with what is wrong."""
    with pytest.raises(ConfigError, match=complaint):
        Mirrors(rewrites, template, prefer=prefer)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("https://store.example/{flie}", "the field 'flie', .*mean file[?] records have other, file, outer.name"),
        ("https://store.example/{outer.nmae}", "did you mean outer.name[?]"),
        ("https://store.example/{file}/{empty}", "no record has the field 'empty'"),
    ],
)  # fmt: skip
def test_a_field_of_no_record_is_refused(template: str, complaint: str) -> None:
    """A template that could never give an address names the nearest field; one record that has it is enough."""
    lines = [_line(other=1), b"nonsense", _line(file="1.jpg", outer={"name": "x"}, empty="")]
    with pytest.raises(ConfigError, match=complaint):
        Mirrors((), template).check(lines)
    Mirrors((), "https://store.example/{file}?{outer.name}").check(lines)
    Mirrors(("a=b",)).check(lines)
    Mirrors((), template).check([])
