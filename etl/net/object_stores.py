"""Object stores by their own URLs, and what is asked for in place of one: s3:, gs: and hf:.

It carries a signature or a token, made anew for each request, so it is neither shown nor kept.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from etl.errors import PackageMissingError, TransientFetchError
from etl.extras import install_extra, install_package
from etl.net.urls import bucket_and_key, hub_file, scheme_of
from etl.text import clean

GOOGLE = "https://storage.googleapis.com"

SIGNED_S = 3600
"""Seconds for which a signature holds; a request is sent at once, but clocks differ."""

_WORDS = re.compile(rb"<(Code|Message)>([^<]{1,300})</")

_MOVED = (301, 302, 307, 400)
"""Statuses by which S3 says that a bucket is in another region."""

# Below this level it writes what it signs.
logging.getLogger("botocore").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for in place of a URL.

    Attributes:
        url, headers: as they go out.
        store: the scheme of the store; empty for a URL of the web, which is asked for as it is.
        endpoint: ``host:port`` that the user's own configuration of the store names; it may be private.
        note: to be said of a refusal.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    store: str = ""
    endpoint: str = ""
    note: str = ""

    def words(self, body: bytes) -> str:
        """Return what a refusal of the store says, in one line.

        Nothing else of its document is shown, which may name the key that was used and what it signed.
        """
        found = dict(_WORDS.findall(body))
        said = [found[name].decode("utf-8", "replace") for name in (b"Code", b"Message") if name in found]
        return clean("; ".join(filter(None, (": ".join(said), self.note))), 300)


class ObjectStores:
    """Tells what is asked for; keeps what was learned of credentials and regions.  For any thread."""

    def __init__(self) -> None:
        self._s3: _S3 | None = None
        self._lock = threading.Lock()

    def asked(self, url: str) -> Asked:
        """Return what is asked for now.  May read files, and ask whoever gives out credentials: call it in a thread.

        Raises a `FetchError`: `PackageMissingError` where the store's own package is not installed.
        """
        return _RESOLVERS[scheme_of(url)](self, url)

    def has_moved(self, asked: Asked, url: str, status: int, headers: Mapping[str, str]) -> bool:
        """Return whether an answer says that the bucket is elsewhere, where the next request goes."""
        region = headers.get("x-amz-bucket-region", "")
        if asked.store != "s3" or status not in _MOVED or not region or self._s3 is None:
            return False
        return self._s3.learned(bucket_and_key(url)[0], region)

    def of_s3(self, url: str) -> Asked:
        """Return a URL that is signed with the keys that are found where Amazon's own programs look for them."""
        bucket, key = bucket_and_key(url)
        with self._lock:
            self._s3 = self._s3 or _S3()
        return self._s3.asked(bucket, key)


def is_store(url: str) -> bool:
    """Return whether a URL is one of a store."""
    return scheme_of(url) in _RESOLVERS


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

    def asked(self, bucket: str, key: str) -> Asked:
        with self._lock, self._explained():
            region = self._regions.get(bucket)
            client = self._clients.get(region)
            if client is None:
                client = self._session.create_client("s3", region_name=region, config=self._config)
                self._clients[region] = client
            named = {"Bucket": bucket, "Key": key}
            url = client.generate_presigned_url("get_object", Params=named, ExpiresIn=SIGNED_S)
        note = "asked without keys, as none were found in the environment or in ~/.aws" if self._unsigned else ""
        return Asked(url, store="s3", endpoint=_host_and_port(client.meta.endpoint_url), note=note)

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
            raise TransientFetchError(f"cannot sign for s3: {error}") from error


def _of_google(_: ObjectStores, url: str) -> Asked:
    bucket, key = bucket_and_key(url)
    return Asked(f"{GOOGLE}/{bucket}/{quote(key, safe='/~')}", store="gs")


def _of_hub(_: ObjectStores, url: str) -> Asked:
    try:
        from huggingface_hub import constants, get_token, hf_hub_url
    except ImportError as error:
        raise PackageMissingError(
            f"hf: addresses need one more package: {install_package('huggingface-hub')}"
        ) from error
    kind, name, revision, path = hub_file(url)
    token = get_token()
    return Asked(
        hf_hub_url(name, path, repo_type=kind, revision=revision),
        {"Authorization": f"Bearer {token}"} if token else {},
        store="hf",
        endpoint=_host_and_port(constants.ENDPOINT),
        note="" if token else "asked without a token, as `hf auth login` or HF_TOKEN give one",
    )


def _host_and_port(url: str) -> str:
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname or ""
    return f"{host}:{parts.port or (80 if parts.scheme == 'http' else 443)}"


_RESOLVERS: dict[str, Callable[[ObjectStores, str], Asked]] = {
    "s3": ObjectStores.of_s3,
    "gs": _of_google,
    "hf": _of_hub,
}
