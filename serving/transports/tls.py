"""The server's TLS certificates, checked at start so that no handshake fails because of a wrong file."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.errors import UsageError
from serving.limited_files import read_limited, why_unreadable
from serving.text_files import without_mark


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the server's certificate chain, its key and, optionally, the CA of client certificates."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """The files that are set."""
        return tuple(filter(None, (self.cert_file, self.key_file, self.client_ca_file)))

    def check(self) -> None:
        """Check that the files are readable and belong together.

        Raises:
            UsageError: a file is unreadable or wrong; the message names it.
        """
        for file in self.all:
            try:
                read_limited(file)
            except OSError as error:
                raise UsageError(f"TLS file {file} cannot be read: {why_unreadable(error)}") from error
        self.context()

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of a server for HTTP/2 and HTTP/1.1.

        Raises:
            UsageError: as in `check`.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            with _for_openssl(self.cert_file) as certificate, _for_openssl(self.key_file) as key:
                # By default, OpenSSL would ask for a password on the terminal.
                context.load_cert_chain(certificate, key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            raise UsageError(
                f"TLS files {self.cert_file} and {self.key_file} are not a certificate and its key: {error}"
            ) from error
        if self.client_ca_file is None:
            return context
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would not show its certificate again, after its authority is no longer trusted.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        try:
            with _for_openssl(self.client_ca_file) as authorities:
                context.load_verify_locations(authorities)
        except ssl.SSLError as error:
            raise UsageError(f"TLS file {self.client_ca_file} contains no certificates: {error}") from error
        return context


class RenewedTls:
    """A TLS context that follows its files: handshakes that begin after `reload` use the new ones."""

    def __init__(self, files: TlsFiles) -> None:
        """Load the files.

        Raises:
            UsageError: as in `TlsFiles.check`.
        """
        self._files = files
        self._current = files.context()
        self.context = files.context()  # for listening sockets
        self.context.sni_callback = self._choose

    def reload(self) -> None:
        """Load the files again.

        Raises:
            UsageError: as in `TlsFiles.check`; the old ones stay in use.
        """
        self._files.check()
        self._current = self._files.context()

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # Called for each handshake, also without a name: SSL_CTX_set_tlsext_servername_callback(3).
        connection.context = self._current


def read_pem(file: Path) -> bytes:
    """Read a PEM file, without the byte order mark of an editor, after which OpenSSL finds nothing.

    Raises:
        OSError: it cannot be read.
    """
    return without_mark(read_limited(file))


@contextmanager
def _for_openssl(file: Path) -> Iterator[Path]:
    """Give a path to the content of `read_pem`: OpenSSL reads keys from files only."""
    content = read_limited(file)
    if without_mark(content) == content:
        yield file
        return
    with os.fdopen(os.memfd_create("pem"), "wb") as copy:
        copy.write(without_mark(content))
        copy.flush()
        yield Path(f"/proc/self/fd/{copy.fileno()}")


def _no_password() -> bytes:
    raise ValueError("the key is encrypted")
