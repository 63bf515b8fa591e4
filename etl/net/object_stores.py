"""Object stores by their own URLs, and what is asked for in place of one: s3:, gs: and hf:.

It carries a signature or a token, made anew for each request, so it is neither shown nor kept.
"""

import asyncio
import logging
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from etl.errors import ConfigError, PackageMissingError, TransientFetchError
from etl.extras import install_extra, install_package
from etl.net.urls import bucket_and_key, hub_file, scheme_of
from etl.text import clean
from etl.units import duration

GOOGLE = "https://storage.googleapis.com"

SIGNED_S = 3600
"""Seconds for which a signature holds; a request is sent at once, but clocks differ."""

_WORDS = re.compile(rb"<(Code|Message)>([^<]{1,300})</")

_CURES = {
    "AccessDenied": "these keys may not read it; where who asks pays, set AWS_REQUEST_PAYER=requester",
    "AllAccessDisabled": "the store's owner or the provider has closed it",
    "ExpiredToken": "the session of the keys is over: sign in again, or renew AWS_SESSION_TOKEN",
    "InvalidAccessKeyId": "the store knows no such key: look at AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "InvalidObjectState": "it is archived: have it restored first (`aws s3api restore-object`)",
    "InvalidToken": "AWS_SESSION_TOKEN is of other keys, or of another store",
    "NoSuchBucket": "look at its name, and at AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "look at AWS_SECRET_ACCESS_KEY",
}
"""What to do where S3 says so."""

MOVED = (301, 302, 307, 400)
"""Statuses by which S3 says that a bucket is in another region."""

_REGION = re.compile(r"<Region>([a-z0-9-]{1,40})</Region>|[./]s3[.-]([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com")
"""In what it says, or in the address that it leads to."""

SKEW_S = 300
"""Seconds by which a clock must be wrong for that to be told."""

# Below warnings it writes what it signs, and warnings have tracebacks of what is raised as well.
logging.getLogger("botocore").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for in place of a URL.

    Attributes:
        url, headers: as they go out.
        store: the scheme of the store; empty for a URL of the web, which is asked for as it is.
        endpoint: ``host:port`` that the user's own configuration of the store names; it may be private.
        note: to be said of a refusal.
        after: the mark behind which a page of a folder begins.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    store: str = ""
    endpoint: str = ""
    note: str = ""
    after: str = ""

    def allowed(self, hosts: Iterable[str]) -> tuple[str, ...]:
        """Return what may be private of all that is dialled for it: these hosts, and the endpoint."""
        return (*hosts, *filter(None, [self.endpoint]))

    def words(self, body: bytes, date: str | None = None) -> str:
        """Return what a refusal of the store says, in one line, and what to do; ``date`` is that of its answer.

        Nothing else of its document is shown, which may name the key that was used and what it signed.
        """
        found = dict(_WORDS.findall(body))
        said = [found[name].decode("utf-8", "replace") for name in (b"Code", b"Message") if name in found]
        told = f"{': '.join(said)[:300]}; {self.note or (_CURES.get(said[0], '') if said else '')}"
        return clean("; ".join(filter(None, (*told.split("; ", 1), _skew(date)))), 500)


class ObjectStores:
    """Tells what is asked for; keeps what was learned of credentials and regions.  For any thread."""

    def __init__(self) -> None:
        self._s3: _S3 | None = None
        self._lock = threading.Lock()

    async def asked(self, url: str, after: str = "") -> Asked:
        """Return what is asked for now: of a folder, whose URL ends with ``/``, a page of what it holds.

        Raises a `FetchError`: `PackageMissingError` where the store's own package is not installed.
        """
        if not is_store(url):
            return Asked(url)
        # In a thread: it may read files, and ask whoever gives out credentials.
        return await asyncio.to_thread(_RESOLVERS[scheme_of(url)], self, url, after)

    def has_moved(self, asked: Asked, url: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Return whether an answer of one of `MOVED` says that the bucket is elsewhere, where the next request goes."""
        told = _REGION.search(f"{body.decode('utf-8', 'replace')} {headers.get('location', '')}")
        region = headers.get("x-amz-bucket-region") or (told and (told[1] or told[2]))
        return bool(asked.store == "s3" and region and self._s3 and self._s3.learned(_inside(url)[0], region))

    def of_s3(self, url: str, after: str) -> Asked:
        """Return a URL that is signed with the keys that are found where Amazon's own programs look for them."""
        bucket, key = _inside(url)
        with self._lock:
            self._s3 = self._s3 or _S3()
        return self._s3.asked(bucket, key, after)


def is_store(url: str) -> bool:
    """Return whether a URL is one of a store."""
    return scheme_of(url) in _RESOLVERS


def context_of(asked: Asked, usual: ssl.SSLContext) -> ssl.SSLContext:
    """Return what certificates are checked by: those of S3 by ``AWS_CA_BUNDLE``, where that is set."""
    bundle = os.environ.get("AWS_CA_BUNDLE") if asked.store == "s3" else ""
    try:
        return ssl.create_default_context(cafile=bundle) if bundle else usual
    except OSError as error:
        raise ConfigError(f"AWS_CA_BUNDLE: {bundle} cannot be used: {error.strerror or error}") from error


def _inside(url: str) -> tuple[str, str]:
    """Return the bucket and the key of an object, or what the keys of a folder begin with."""
    if not url.endswith("/"):
        return bucket_and_key(url)
    bucket, key = bucket_and_key(f"{url}_")
    return bucket, key[:-1]


def _skew(date: str | None) -> str:
    """Return in words by how much this machine's clock differs from that of an answer; empty where it hardly does."""
    try:
        ahead = time.time() - parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return ""
    if abs(ahead) < SKEW_S:
        return ""
    return f"this machine's clock is {duration(abs(ahead))} {'ahead' if ahead > 0 else 'behind'}: set it right"


class _S3:
    def __init__(self) -> None:
        try:
            from botocore import UNSIGNED
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
            from botocore.session import Session
        except ImportError as error:
            raise PackageMissingError(f"s3: addresses need one more package: {install_extra('s3')}") from error
        self._error: type[Exception] = BotoCoreError
        self._lock = threading.Lock()
        self._clients: dict[str | None, Any] = {}
        self._regions: dict[str, str] = {}
        with self._explained():
            self._session = Session()
            self._unsigned = self._session.get_credentials() is None
            self._config = Config(signature_version=UNSIGNED if self._unsigned else "s3v4")

    def asked(self, bucket: str, key: str, after: str) -> Asked:
        is_folder = not key or key.endswith("/")
        payer = {"RequestPayer": "requester"} if os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester" else {}
        named = {"Bucket": bucket, **payer, **({"Prefix": key, "EncodingType": "url"} if is_folder else {"Key": key})}
        if after:
            named["ContinuationToken"] = after
        with self._lock, self._explained():
            region = self._regions.get(bucket)
            client = self._clients.get(region)
            if client is None:
                client = self._session.create_client("s3", region_name=region, config=self._config)
                self._clients[region] = client
            operation = "list_objects_v2" if is_folder else "get_object"
            url = client.generate_presigned_url(operation, Params=named, ExpiresIn=SIGNED_S)
        note = "asked without keys, as none were found in the environment or in ~/.aws" if self._unsigned else ""
        headers = {"x-amz-request-payer": "requester"} if payer else {}
        return Asked(url, headers, "s3", _host_and_port(client.meta.endpoint_url), note, after)

    def learned(self, bucket: str, region: str) -> bool:
        """Return whether this region is news."""
        with self._lock:
            before, self._regions[bucket] = self._regions.get(bucket), region
        return before != region

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Give errors of the library their class: its credentials may have expired, and be renewed meanwhile."""
        try:
            yield
        except self._error as error:
            cure = "; `aws sso login` renews it" * ("SSO" in str(error))
            raise TransientFetchError(f"cannot sign for s3: {error}{cure}") from error


def _of_google(_: ObjectStores, url: str, after: str) -> Asked:
    bucket, key = _inside(url)
    if key and not key.endswith("/"):
        return Asked(f"{GOOGLE}/{bucket}/{quote(key, safe='/~')}", store="gs")
    asking = {"list-type": "2", "encoding-type": "url", "prefix": key, "continuation-token": after}
    return Asked(f"{GOOGLE}/{bucket}?{urlencode({k: v for k, v in asking.items() if v})}", store="gs", after=after)


def _of_hub(_: ObjectStores, url: str, after: str) -> Asked:
    try:
        from huggingface_hub import constants, get_token, hf_hub_url
    except ImportError as error:
        raise PackageMissingError(
            f"hf: addresses need one more package: {install_package('huggingface-hub')}"
        ) from error
    kind, name, revision, path = hub_file(f"{url}_" if url.endswith("/") else url)
    token = get_token()
    asked = hf_hub_url(name, path, repo_type=kind, revision=revision)
    if url.endswith("/"):
        tree = f"{constants.ENDPOINT}/api/{kind}s/{name}/tree/{quote(revision, safe='')}/{quote(path[:-1].rstrip('/'))}"
        asked = f"{tree.rstrip('/')}?{urlencode({'recursive': 'true'} | ({'cursor': after} if after else {}))}"
    return Asked(
        asked,
        {"Authorization": f"Bearer {token}"} if token else {},
        store="hf",
        endpoint=_host_and_port(constants.ENDPOINT),
        note="" if token else "asked without a token, as `hf auth login` or HF_TOKEN give one",
        after=after,
    )


def _host_and_port(url: str) -> str:
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname or ""
    return f"{host}:{parts.port or (80 if parts.scheme == 'http' else 443)}"


_RESOLVERS: dict[str, Callable[[ObjectStores, str, str], Asked]] = {
    "s3": ObjectStores.of_s3,
    "gs": _of_google,
    "hf": _of_hub,
}
