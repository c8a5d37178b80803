"""An S3 of this machine: moto's server, which can be out of service and keeps its objects meanwhile."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

BUCKET = "models"


class ObjectStore:
    """A bucket. The environment of the test's process leads s3fs and boto3 to it."""

    def __init__(self, port: int) -> None:
        from moto.server import ThreadedMotoServer  # noqa: PLC0415 - not installed everywhere

        self._make = lambda: ThreadedMotoServer("127.0.0.1", port, verbose=False)
        self._server = self._make()

    @property
    def url(self) -> str:
        """Of the repository in the bucket."""
        return f"s3://{BUCKET}/lenserve"

    def start(self) -> None:
        """Begin to answer."""
        self._server = self._make()
        self._server.start()

    def stop(self) -> None:
        """Refuse connections. The objects stay."""
        self._server.stop()

    def client(self) -> Any:  # noqa: ANN401 - boto3 makes its methods at run time
        """Return a client of boto3."""
        import boto3  # noqa: PLC0415 - not installed everywhere

        return boto3.client("s3")

    def upload(self, folder: Path) -> None:
        """Put the files of a repository, manifests last."""
        client = self.client()
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: path.name == "manifest.json"):
            client.upload_file(str(path), BUCKET, f"lenserve/{path.relative_to(folder).as_posix()}")


@contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch, port: int) -> Iterator[ObjectStore]:
    """Run an S3 with an empty bucket; skip the test where moto or s3fs is not installed."""
    for module in ("moto", "s3fs", "boto3"):
        if find_spec(module) is None:
            pytest.skip(f"no object store: {module} is not installed (pip install 'moto[server]' s3fs)")
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs  # noqa: PLC0415 - not installed everywhere

    s3fs.S3FileSystem.clear_instance_cache()  # it does not look at the environment again
    store = ObjectStore(port)
    store.start()
    try:
        store.client().create_bucket(Bucket=BUCKET)
        yield store
    finally:
        store.stop()


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listened a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
