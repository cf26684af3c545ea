"""What of the environment the HTTP client is made with: what it cannot use is one line that names the variable."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import certifi
import pytest

from billing.errors import InvalidSetting
from billing.xendit.client import XenditGateway

PASSWORD = "hunter2-in-a-proxy"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("SSL_CERT_", "SSLKEYLOG")):
            monkeypatch.delenv(name)


def ready(base_url: str = "https://api.xendit.example") -> None:
    gateway = XenditGateway(base_url=base_url, secret_key="xnd_development_x", timeout_seconds=5)
    try:
        gateway.ready()
    finally:
        gateway.close()


def refusal(base_url: str = "https://api.xendit.example") -> str:
    with pytest.raises(InvalidSetting) as caught:
        ready(base_url)
    line = str(caught.value)
    assert "\n" not in line
    assert PASSWORD not in line
    return line


# Proxies


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        ("HTTP_PROXY", f"ftp://u:{PASSWORD}@proxy.example:21"),
        ("http_proxy", "ftp://proxy.example"),
        ("HTTPS_PROXY", "file:///etc/passwd"),
        ("ALL_PROXY", "socks5://proxy.example:1080"),  # without the package for it
        ("all_proxy", "socks4://proxy.example:1080"),
        ("HTTPS_PROXY", "http://"),
        ("HTTPS_PROXY", "http://proxy.example:port"),
        ("HTTPS_PROXY", "http://proxy.example:99999"),
        ("HTTPS_PROXY", f"http://u:{PASSWORD}/x@proxy.example:3128"),
        ("HTTPS_PROXY", f"http://{'a' * 80}.example:3128"),
        ("HTTPS_PROXY", "http://pro xy.example:3128"),
        ("HTTPS_PROXY", f"http://us er:{PASSWORD}@proxy.example:3128"),
        ("HTTPS_PROXY", f"http://u: {PASSWORD}@proxy.example:3128"),
        ("HTTPS_PROXY", f"http://u:{PASSWORD}@proxy.example:3128/\tx"),
        ("HTTPS_PROXY", "http://[::1"),
        ("HTTPS_PROXY", "proxy.example:3128:1"),
        ("NO_PROXY", "localhost,fd00::/8"),
        ("no_proxy", "proxy.example:port"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, address: str) -> None:
    monkeypatch.setenv(variable, address)
    line = refusal()
    assert line.startswith(f"{variable.upper() if variable == 'no_proxy' else variable}: ")
    assert "for example" in line


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize(
    "address", ["http://proxy.example:3128", "proxy.example:3128", "https://u:p%40ss@10.0.0.1", "http://[::1]:3128", ""]
)
def test_a_proxy_that_can_be_used_is_none_to_complain_of(
    monkeypatch: pytest.MonkeyPatch, variable: str, address: str
) -> None:
    monkeypatch.setenv(variable, address)
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1,.internal,10.0.0.0/8,::1,db:5432,")
    ready()


def test_no_proxy_for_anybody_makes_the_others_matter_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "ftp://proxy.example")
    monkeypatch.setenv("NO_PROXY", "localhost, *")
    ready()


@pytest.mark.parametrize("base_url", ["http://localhost:8100", "http://127.0.0.1:8100", "http://[::1]:8100"])
def test_our_own_simulator_needs_neither_proxies_nor_certificates(
    monkeypatch: pytest.MonkeyPatch, base_url: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", "ftp://proxy.example")
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file")
    ready(base_url)


# Certificates


def _file(folder: Path, content: bytes) -> str:
    path = folder / "certificates.pem"
    path.write_bytes(content)
    return str(path)


def test_a_file_of_certificates_that_holds_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for value in (
        "/no/such/file.pem",
        str(tmp_path),
        _file(tmp_path, b""),
        _file(tmp_path, b"\x00\xff garbage"),
        _file(tmp_path, b"-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n"),
    ):
        monkeypatch.setenv("SSL_CERT_FILE", value)
        assert refusal().startswith("SSL_CERT_FILE: no certificates could be read (")


def test_a_folder_of_certificates_that_holds_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(Path(certifi.where()).read_text())  # not under its hash: nobody would find it
    for value in ("/no/such/folder", str(tmp_path), certifi.where(), f"/no/such:{tmp_path}"):
        monkeypatch.setenv("SSL_CERT_DIR", value)
        line = refusal()
        assert line.startswith("SSL_CERT_DIR: no certificates could be read (")
        assert "openssl rehash" in line


def test_certificates_that_are_there_are_none_to_complain_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "0a1b2c3d.0").write_text(Path(certifi.where()).read_text())
    monkeypatch.setenv("SSL_CERT_DIR", f"/no/such:{tmp_path}")
    ready()
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    ready()


def test_a_key_log_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", "/no/such/folder/keys")
    assert refusal().startswith("SSLKEYLOGFILE: cannot be written (")


def test_whatever_else_keeps_the_client_from_being_made_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"with {PASSWORD}")

    monkeypatch.setattr(ssl, "create_default_context", broken)
    assert "RuntimeError" in refusal()
    monkeypatch.undo()
    monkeypatch.setattr("httpx.Client.__init__", broken)
    assert "HTTPS_PROXY" in refusal()


@pytest.mark.parametrize("base_url", ["https://x:99999", "https://x:0", "https://a b", "https://x?y=1", "https://x#y"])
def test_an_address_of_xendit_that_cannot_be_used_is_named(base_url: str) -> None:
    with pytest.raises(InvalidSetting, match="BILLING_XENDIT_BASE_URL"):
        XenditGateway(base_url=base_url, secret_key="xnd_development_x", timeout_seconds=5)
