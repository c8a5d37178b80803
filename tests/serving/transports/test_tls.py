"""Certificates: what does not fit is a sentence before anybody connects."""

import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from serving.errors import UsageError
from serving.transports.tls import TlsFiles


def test_files_that_fit_are_taken(certificates: Path) -> None:
    """With an authority for clients and without."""
    TlsFiles(certificates / "server.pem", certificates / "server.key").check()
    TlsFiles(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem").check()


@pytest.mark.parametrize("missing", ["cert", "key", "client_ca"])
def test_a_file_that_is_not_there_is_named(certificates: Path, missing: str) -> None:
    """Each of the three."""
    names = {"cert": "server.pem", "key": "server.key", "client_ca": "ca.pem", missing: "nowhere.pem"}
    files = TlsFiles(*(certificates / name for name in names.values()))
    with pytest.raises(UsageError, match=r"nowhere\.pem cannot be read: No such file"):
        files.check()


def test_a_key_of_another_certificate_is_refused(certificates: Path) -> None:
    """Both are named, for either can be the wrong one."""
    with pytest.raises(UsageError, match=re.escape("client.key are not a certificate and its key")):
        TlsFiles(certificates / "server.pem", certificates / "client.key").check()


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_certificate_is_refused(certificates: Path, tmp_path: Path, content: bytes) -> None:
    """As the server's own, and as that of the authority."""
    bad = tmp_path / "bad.pem"
    bad.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.pem"):
        TlsFiles(bad, certificates / "server.key").check()
    with pytest.raises(UsageError, match=r"bad\.pem contains no certificates"):
        TlsFiles(certificates / "server.pem", certificates / "server.key", bad).check()


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(
    certificates: Path, tmp_path: Path
) -> None:
    """A server has no terminal."""
    key = load_pem_private_key((certificates / "server.key").read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (tmp_path / "locked.key").write_bytes(locked)
    with pytest.raises(UsageError, match="the key is encrypted"):
        TlsFiles(certificates / "server.pem", tmp_path / "locked.key").check()
