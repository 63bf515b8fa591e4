"""Fixtures of the network tests: a server that misbehaves, and an environment without proxies."""

import asyncio
import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etl.net.client import Download, Downloader, Validators
from etl.settings import Settings


@pytest.fixture
def settings() -> Settings:
    """Short limits, and loopback allowed."""
    return Settings(connect_timeout=0.3, read_timeout=0.4, min_rate=2000, max_bytes=500_000, allow_host=("127.0.0.1",))


@pytest.fixture
def fetch(settings: Settings, tmp_path: Path) -> Callable[..., Download]:
    """Download one URL with a downloader of its own; keyword arguments change the settings."""

    def run(url: str, *, etag: str | None = None, part: Path | None = None, **changes: Any) -> Download:
        async def go() -> Download:
            # A download that its own limits do not end fails its test here instead of hanging it.
            async with asyncio.timeout(8), Downloader(dataclasses.replace(settings, **changes)) as downloader:
                return await downloader.download(
                    url, part or tmp_path / "a.part", validators=Validators(etag, None) if etag else None
                )

        return asyncio.run(go())

    return run


class Certificates:
    """Self-signed certificates, made on demand: ``{name}.pem`` with the key, ``{name}.pem.crt`` without."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def make(self, name: str, address: str = "127.0.0.1", until: str = "20990101000000Z") -> str:
        """Return the path of a certificate for an address that ends at an instant (``YYYYMMDDHHMMSSZ``)."""
        folder = self._directory / name
        folder.mkdir()
        pem, request = folder / f"{name}.pem", folder / "request"
        config = folder / "config"
        config.write_text(
            "[ca]\ndefault_ca=own\n[own]\ndatabase=index\nrand_serial=yes\ndefault_md=sha256\npolicy=any\n"
            f"new_certs_dir=.\nunique_subject=no\nx509_extensions=names\n[any]\ncommonName=supplied\n"
            f"[names]\nsubjectAltName=IP:{address}\n"
        )
        (folder / "index").touch()
        self._openssl(
            folder, "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={address}", "-keyout", pem,
            "-out", request,
        )  # fmt: skip
        self._openssl(
            folder, "ca", "-batch", "-notext", "-config", config, "-selfsign", "-keyfile", pem, "-in", request,
            "-out", f"{pem}.crt", "-startdate", "20200101000000Z", "-enddate", until,
        )  # fmt: skip
        pem.write_text(pem.read_text() + Path(f"{pem}.crt").read_text())
        return str(pem)

    @staticmethod
    def _openssl(folder: Path, *arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def certificate(certificates: Certificates) -> str:
    """A self-signed certificate for 127.0.0.1."""
    return certificates.make("good")
