"""Where a redirect leads, and what of the request may go there."""

import httpx2

from etl.errors import ProtocolError
from etl.net.connections import Answer
from etl.net.request import Target


def redirected(
    answer: Answer, location: str, sent: dict[str, str], cookies: httpx2.Cookies
) -> tuple[Target, dict[str, str]]:
    """Return where an answer leads and the headers that are sent there; it may set cookies, of which some may be sent.

    Raises `ProtocolError` for what is no URL and `InvalidUrlError` for one that cannot be asked for.
    """
    before = answer.target
    try:
        target = before.joined(location)
    except httpx2.InvalidURL as error:
        raise ProtocolError("redirects to what is no URL") from error
    if "set-cookie" in answer.headers:
        asked = httpx2.Request("GET", before.given)
        cookies.extract_cookies(httpx2.Response(answer.status, headers=answer.raw_headers, request=asked))
    following = httpx2.Request("GET", target.given)
    cookies.set_cookie_header(following)
    left_out = {"Cookie"} if target.may_have_authorization_of(before) else {"Cookie", "Authorization"}
    kept = {name: value for name, value in sent.items() if name not in left_out}
    cookie = {"Cookie": following.headers["cookie"]} if "cookie" in following.headers else {}
    return target, {**kept, **cookie, **target.authorization}
