"""TLS files: misconfiguration is reported at start."""

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


def test_matching_files_are_accepted(certificates: Path) -> None:
    """With and without a CA of clients."""
    TlsFiles(certificates / "server.pem", certificates / "server.key").check()
    TlsFiles(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem").check()


@pytest.mark.parametrize("missing", ["cert", "key", "client_ca"])
def test_a_missing_file_is_named(certificates: Path, missing: str) -> None:
    """Each of the three."""
    names = {"cert": "server.pem", "key": "server.key", "client_ca": "ca.pem", missing: "nowhere.pem"}
    files = TlsFiles(*(certificates / name for name in names.values()))
    with pytest.raises(UsageError, match=r"nowhere\.pem cannot be read: No such file"):
        files.check()


def test_a_key_of_another_certificate_is_an_error(certificates: Path) -> None:
    """Both files are named: either can be the wrong one."""
    with pytest.raises(UsageError, match=re.escape("client.key are not a certificate and its key")):
        TlsFiles(certificates / "server.pem", certificates / "client.key").check()


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_an_invalid_certificate_is_an_error(certificates: Path, tmp_path: Path, content: bytes) -> None:
    """For the server and for the CA."""
    bad = tmp_path / "bad.pem"
    bad.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.pem"):
        TlsFiles(bad, certificates / "server.key").check()
    with pytest.raises(UsageError, match=r"bad\.pem contains no certificates"):
        TlsFiles(certificates / "server.pem", certificates / "server.key", bad).check()


def test_an_encrypted_key_is_an_error_without_a_password_prompt(certificates: Path, tmp_path: Path) -> None:
    """A server has no terminal."""
    key = load_pem_private_key((certificates / "server.key").read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (tmp_path / "locked.key").write_bytes(locked)
    with pytest.raises(UsageError, match="the key is encrypted"):
        TlsFiles(certificates / "server.pem", tmp_path / "locked.key").check()
