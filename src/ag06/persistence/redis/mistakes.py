"""Mistakes in an address that no waiting heals: TLS files, certificates, and a server that speaks another protocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

from ag06.errors import ConfigurationError
from ag06.persistence.redis.address import Address

_PROBE_SECONDS = 1.0
_EXPIRED, _NOT_YET, _OTHER_HOST, _OTHER_ADDRESS = 10, 9, 62, 64
_ADVICE = {
    _EXPIRED: "renew the server's certificate",
    _NOT_YET: "compare the clocks of this machine and of whoever made the certificate",
    _OTHER_HOST: "use a host name that the certificate names, or ssl_check_hostname=false",
    _OTHER_ADDRESS: "use a host name that the certificate names, or ssl_check_hostname=false",
}
"""What to do about an error of verification, by OpenSSL's number for it."""
_PASSING = {None, "TLSV1_ALERT_INTERNAL_ERROR", "UNEXPECTED_EOF_WHILE_READING", "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"}
"""What may go well the next time, by OpenSSL's name."""

_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"}


def check_files(address: Address) -> None:
    """Raise `ConfigurationError` if a file that a URL with TLS names cannot be used."""
    options = _options(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if (bundle := options.get("ssl_ca_certs")) is not None:
        with _naming(address, "ssl_ca_certs", bundle, "a file of PEM certificates"):
            context.load_verify_locations(cafile=bundle)
    if (folder := options.get("ssl_ca_path")) is not None:
        with _naming(address, "ssl_ca_path", folder, "a directory of PEM certificates"):
            os.listdir(folder)
    certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    if certificate is None:
        if key is not None:
            raise ConfigurationError(f"{address.shown}: ssl_keyfile={key} needs ssl_certfile, the certificate for it")
        return
    with _naming(address, "ssl_certfile", certificate, "a PEM certificate, with its key there or in ssl_keyfile"):
        # A password in any case: without one the library asks for it on the terminal.
        context.load_cert_chain(certificate, key, options.get("ssl_password", ""))


def _options(address: Address) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(urlsplit(address.url).query).items()}


@contextlib.contextmanager
def _naming(address: Address, option: str, value: str, wanted: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one too
        why = error.strerror or error
        raise ConfigurationError(f"{address.shown}: {option}={value}: {why}; give {wanted}") from None


def in_handshake(error: BaseException) -> str | None:
    """Return what is wrong with TLS and what to do, from an error while connecting; `None`: nothing for certain."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            advice = _ADVICE.get(cause.verify_code, "give the certificate of its authority with ssl_ca_certs=FILE")
            return f"its certificate is not accepted ({cause.verify_message.rstrip('.')}); {advice}"
        if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
            return None
        if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
            return f"it does not speak TLS ({cause.reason}); correct host, port or scheme"
        if isinstance(cause, ssl.SSLError) and cause.reason not in _PASSING:
            return f"TLS fails ({cause.reason}); compare the options ssl_... of the URL with what the server asks for"
    return None


def is_tls_error(error: BaseException) -> bool:
    """Whether TLS failed for another reason than a certificate that was not accepted."""
    causes = list(_causes(error))
    return any(isinstance(cause, ssl.SSLError) for cause in causes) and not any(
        isinstance(cause, ssl.SSLCertVerificationError) for cause in causes
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


async def find_other_protocol(node: Address) -> str | None:
    """Ask whether a server that cut a connection short speaks TLS where the URL says plain, or the other way round.

    Return what to write instead; `None` if it does not say. A server that wants a certificate of its clients is asked
    too: what it says of that is lost when it closes a connection on which something was sent.
    """
    parts = urlsplit(node.url)
    host, port = parts.hostname or "localhost", parts.port or 6379
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PROBE_SECONDS):
            if parts.scheme == "redis":
                return "it speaks TLS; write rediss:// for redis://" if await _speaks_tls(host, port) else None
            if await _speaks_plainly(host, port):
                return "it speaks without TLS; write redis:// for rediss://"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PROBE_SECONDS):
            return await _find_alert(host, port, node)
    return None


async def _speaks_plainly(host: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(b"*1\r\n$4\r\nPING\r\n")
            return (await reader.read(1)) in (b"+", b"-")
        finally:
            writer.transport.abort()
    return False


def _trusting() -> ssl.SSLContext:
    """Return a context that accepts every server: nothing is sent to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def _find_alert(host: str, port: int, node: Address) -> str | None:
    """Return what a server with TLS objects to after the handshake."""
    context = _trusting()
    options = _options(node)
    if (certificate := options.get("ssl_certfile")) is not None:
        context.load_cert_chain(certificate, options.get("ssl_keyfile"), options.get("ssl_password", ""))
    writer = None
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        await reader.read(1)
    except OSError as error:
        return in_handshake(error)
    finally:
        if writer is not None:
            writer.transport.abort()
    return None


async def _speaks_tls(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port, ssl=_trusting())
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
    writer.transport.abort()
    return True
