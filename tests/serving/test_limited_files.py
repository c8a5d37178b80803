"""No file that people name stops a program: neither one that never ends, nor one that nobody writes."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving.commandline import DONE, Command, print_line, run_commands
from serving.errors import UsageError
from serving.importing.labels import read_labels
from serving.limited_files import read_limited, read_once
from serving.rpc.bearer_tokens import Tokens
from serving.transports.changed_files import ChangedFiles
from serving.transports.tls import TlsFiles

Read = Callable[[Path], object]


@pytest.fixture
def pipe_with() -> Iterator[Callable[[bytes], Path]]:
    """Give the path of a pipe that a writer fills, as `<(command)` of a shell does."""
    with ExitStack() as stack:

        def make(content: bytes) -> Path:
            reader, writer = os.pipe()
            stack.callback(os.close, reader)

            def write() -> None:
                with os.fdopen(writer, "wb") as file:
                    file.write(content)

            thread = threading.Thread(target=write)
            thread.start()
            stack.callback(thread.join)
            return Path(f"/dev/fd/{reader}")

        yield make


def _make(kind: str, path: Path) -> Path:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    return path


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "socket"])
@pytest.mark.parametrize(
    "read",
    [
        Tokens.read,
        lambda path: TlsFiles(path, Path(__file__)).check(),
        lambda path: TlsFiles(Path(__file__), path).check(),
        lambda path: TlsFiles(Path(__file__), Path(__file__), path).check(),
    ],
    ids=["tokens", "certificate", "key", "authority"],
)
def test_what_is_read_again_must_be_a_regular_file(kind: str, read: Read, tmp_path: Path) -> None:
    """The start does not wait, and the message has the file and what it is."""
    path = _make(kind, tmp_path / "named")
    with pytest.raises(UsageError, match=rf"{path} cannot be read: it is a {kind}, not a regular file"):
        read(path)


def test_a_watched_file_that_becomes_a_pipe_stops_nothing(tmp_path: Path) -> None:
    """It is loaded again once it is a file."""
    file, loads = tmp_path / "tokens.toml", []
    file.write_text("a")
    watched = ChangedFiles([file], lambda: loads.append(read_limited(file)))
    file.unlink()
    _make("pipe", file)
    watched.look()
    assert not loads
    file.unlink()
    file.write_text("b")
    watched.look()
    assert loads == [b"b"]


def test_a_mounted_secret_is_read(tmp_path: Path) -> None:
    """Kubernetes mounts it as a symbolic link to a link."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "tokens").write_bytes(b"secret")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "tokens").symlink_to("..data/tokens")
    assert read_limited(tmp_path / "tokens") == b"secret"


def test_what_is_read_once_may_be_a_pipe(pipe_with: Callable[[bytes], Path]) -> None:
    """Also one that is longer than the buffer of the kernel."""
    content = bytes(range(256)) * 1000
    assert read_once(pipe_with(content)) == content
    assert read_labels(pipe_with(b"cat\ndog\n")) == ("cat", "dog")
    assert read_once(Path("/dev/null")) == b""


def test_options_may_come_from_a_pipe(
    pipe_with: Callable[[bytes], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """`--config <(command)`."""

    class Greet(Command):
        """Greet."""

        name: str

        def run(self) -> int:
            print_line(self.name)
            return DONE

    assert (
        run_commands("x", "", {"greet": Greet}, ["greet", "--config", str(pipe_with(b'name="Zoe"'))]) == DONE
    )
    assert capsys.readouterr().out == "Zoe\n"


@pytest.mark.parametrize("is_written", [True, False])
def test_a_pipe_that_does_not_end_is_given_up(*, is_written: bool, tmp_path: Path) -> None:
    """Whether it has a writer or not; the message has the limit."""
    path = _make("pipe", tmp_path / "pipe")
    with ExitStack() as stack:
        if is_written:
            writer = os.open(path, os.O_RDWR)
            stack.callback(os.close, writer)
            os.write(writer, b"some")
        with pytest.raises(OSError, match=r"its writer has not ended after 0\.05 s: name a regular file"):
            read_once(path, limit_s=0.05)


@pytest.mark.parametrize("read", [read_limited, read_once])
def test_a_file_above_the_limit_is_not_read_whole(read: Callable[[Path, int], bytes], tmp_path: Path) -> None:
    """The message has the limit."""
    (tmp_path / "file").write_bytes(bytes(11))
    assert read(tmp_path / "file", 11) == bytes(11)
    with pytest.raises(OSError, match="it has more than 10 bytes, the limit"):
        read(tmp_path / "file", 10)
