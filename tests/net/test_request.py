"""What goes out for a URL."""

import random

import httpx2
import pytest

from etl.errors import InvalidUrlError
from etl.net.request import Target

SERVERS = [
    "h", "H.example", "127.0.0.1", "127.1", "999.1.1.1", "[::1]", "a..b", "xn--bcher-kva.de", "bücher.de", "a_b.c",
    "h.", "h:80", "h:443", "h:8080", "h:99999", "h:x", "u:p@h", "h%41", "ho\x00st", "a'b", "-a.b",
]  # fmt: skip

PLAIN = "abc019._~-!$&'()*+,;=:@/?"
STRANGE = [*PLAIN, "%41", "%c3", "%zz", "%", "/./", "/../", "#", "é", " ", "\\", "[", "{", '"', "<", "|", "`", "\n"]


def test_a_plain_url_is_what_httpx2_makes_of_it() -> None:
    """A URL that is taken apart by a pattern has the parts that httpx2 finds in it, and a bad server is as bad."""
    rng = random.Random(1)

    def parts(url: str, *, whole: bool) -> object:
        try:
            found = Target.of(url, whole=whole)
        except (InvalidUrlError, httpx2.InvalidURL) as error:
            return type(error)
        return (found.netloc, found.url, found.origin, found.userinfo, found.text)

    for number in range(1500):
        letters = STRANGE if number % 2 else [*PLAIN]
        tail = "".join(rng.choice(letters) for _ in range(rng.randrange(10)))
        url = f"{rng.choice(['http', 'https'])}://{rng.choice(SERVERS)}/{tail}"
        # A fragment is not sent, and keeps a URL from being plain.
        expected = parts(f"{url}#" if "#" not in url else url, whole=False)
        assert parts(url, whole=False) == expected, url


@pytest.mark.parametrize(
    ("before", "location", "leads_to"),
    [
        ("http://h/a/b?c", "d", "http://h/a/d"),
        ("http://h/a", "/b//c?d=é", "http://h/b//c?d=%C3%A9"),
        ("http://h/a", "//other:8080/x", "http://other:8080/x"),
        ("http://h/a", "https:///x", "https://h/x"),
        ("http://u:p@h/a/b", "../c", "http://h/c"),
        ("http://h/a", "/x/../y?X-Amz-Signature=1&X-Amz-Date=2", "http://h/x/../y?X-Amz-Signature=1&X-Amz-Date=2"),
    ],
)
def test_a_redirect_leads_on(before: str, location: str, leads_to: str) -> None:
    """Relative and half-absolute addresses lead where browsers go; the path of a signed one stays as it is written."""
    assert Target.of(before).joined(location).text == leads_to


@pytest.mark.parametrize(
    ("before", "after", "may"),
    [
        ("http://h/a", "http://h/b", True),
        ("http://h/a", "https://h/b", True),
        ("https://h/a", "http://h/b", False),
        ("http://h:8080/a", "https://h/b", False),
        ("https://h/a", "https://h:8443/a", False),
        ("https://h/a", "https://h.evil/a", False),
    ],
)
def test_authorization_stays_with_its_server(before: str, after: str, may: bool) -> None:
    """A redirect to another server, or out of TLS, takes neither token nor password along."""
    assert Target.of(after).may_have_authorization_of(Target.of(before)) is may
    assert Target.of("http://me:a%20b@h/").authorization == {"Authorization": "Basic bWU6YSBi"}
