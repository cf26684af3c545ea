"""What of this machine the HTTP client is made with: its proxies and its certificates. Called by connection.py.

httpx takes them from the environment. What it could not use is refused here, before anything depends on it: one line
that names the variable. Values are never shown: the address of a proxy may hold a password.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import getproxies

import httpx

from billing.errors import InvalidSetting

_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")  # how OpenSSL names the certificates of a folder
_PORTS = 65_536
_HOST = re.compile(rb"[A-Za-z0-9._:-]+")


def web_address(text: str, schemes: tuple[str, ...]) -> httpx.URL | None:
    """None when no connection could be opened with it."""
    try:
        url = httpx.URL(text)
        named = url.host.encode("idna")  # a label that is too long would only fail when it is looked up
    except (httpx.InvalidURL, UnicodeError):
        return None
    if url.scheme not in schemes or not _HOST.fullmatch(named) or (url.port is not None and not 0 < url.port < _PORTS):
        return None
    return url


def tls_context() -> ssl.SSLContext:
    """20 ms and half a megabyte of certificates: made once, shared by all clients. Raises InvalidSetting."""
    _check_key_log()
    variable = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), None)
    try:
        context = httpx.create_ssl_context()
    except Exception as error:  # noqa: BLE001 - OpenSSL and the file system, each with kinds of its own
        raise _no_certificates(variable, _reason(error)) from None
    # A folder is only looked into when somebody connects, and one that is not there is an empty one to OpenSSL.
    empty = not _holds_certificates(os.environ["SSL_CERT_DIR"]) if variable == "SSL_CERT_DIR" else not _any(context)
    if empty:
        raise _no_certificates(variable, "there are none in it")
    return context


def _no_certificates(variable: str | None, reason: str) -> InvalidSetting:
    if variable == "SSL_CERT_DIR":
        advice = "name a folder prepared by `openssl rehash`, such as SSL_CERT_DIR=/etc/ssl/certs, or unset it"
    elif variable == "SSL_CERT_FILE":
        advice = "name a PEM file, such as SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt, or unset it"
    else:
        variable, advice = (
            "SSL_CERT_FILE",
            "it is not set, and the package certifi is damaged; set it or run `make setup`",
        )
    return InvalidSetting(f"{variable}: no certificates could be read ({reason}); {advice}")


def _any(context: ssl.SSLContext) -> bool:
    return context.cert_store_stats()["x509"] > 0


def _holds_certificates(folders: str) -> bool:
    for folder in folders.split(os.pathsep):
        with suppress(OSError):
            if any(_HASHED.fullmatch(entry.name) and entry.is_file() for entry in Path(folder).iterdir()):
                return True
    return False


def _check_key_log() -> None:
    """Python writes the keys of TLS into the file that this variable names."""
    if not os.environ.get("SSLKEYLOGFILE"):
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).keylog_filename = os.environ["SSLKEYLOGFILE"]
    except Exception as error:  # noqa: BLE001 - the file system's
        raise InvalidSetting(f"SSLKEYLOGFILE: cannot be written ({_reason(error)}); unset it") from None


def check_proxies() -> None:
    """Raises InvalidSetting for those that a client would refuse, or refuse to connect with later."""
    for variable, address in _proxies():
        example = f"for example {variable}=http://proxy.example.com:3128, or unset it"
        scheme = address.partition("://")[0].lower()
        if scheme not in _PROXY_SCHEMES:
            raise InvalidSetting(f"{variable}: must begin with http://, https:// or socks5://; {example}")
        # A blank in its user would be sent as another one, and its host is not the only place for strays.
        if re.search(r"[\s\x00-\x1f\x7f]", address) or web_address(address, _PROXY_SCHEMES) is None:
            raise InvalidSetting(
                f"{variable}: not the address of a proxy (special characters in its user and password are written"
                f" as %XX); {example}"
            )
        try:
            httpx.Client(proxy=address, verify=False, trust_env=False).close()  # noqa: S501 - only made, never used
        except ImportError:
            raise InvalidSetting(
                f"{variable}: a SOCKS proxy needs the package socksio, which is not installed; {example}"
            ) from None
        except Exception as error:  # noqa: BLE001 - httpx raises several kinds
            raise InvalidSetting(f"{variable}: cannot be used ({error.__class__.__name__}); {example}") from None


def _proxies() -> Iterator[tuple[str, str]]:
    """(variable, address) of those that httpx takes, as it reads them."""
    read = getproxies()
    if "*" in [host.strip() for host in read.get("no", "").split(",")]:
        return
    for scheme in ("http", "https", "all"):
        value = read.get(scheme)
        if value:
            names = [name for name, found in os.environ.items() if name.lower() == f"{scheme}_proxy" and found == value]
            yield min(names, default=f"{scheme}_proxy".upper()), value if "://" in value else f"http://{value}"


def not_made(error: Exception) -> InvalidSetting:
    """The client could not be made, though each proxy can be used."""
    if getproxies().get("no"):
        return InvalidSetting(
            f"NO_PROXY: cannot be read ({error.__class__.__name__}); write names and addresses separated by commas, no"
            " networks of IPv6, for example NO_PROXY=localhost,.example.com,10.0.0.1"
        )
    return InvalidSetting(
        f"the HTTP client cannot be made ({error.__class__.__name__}); check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY,"
        " NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
    )


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or error.__class__.__name__
