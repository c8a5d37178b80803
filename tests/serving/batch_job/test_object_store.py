"""Batches of an object store, against moto's server; skipped where moto and s3fs are not installed."""

import csv
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from serving.bundle import Repository
from serving.cli import main
from tests.colours import Publish

pytest.importorskip("s3fs", reason="s3fs is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with two images, a damaged one, a list and a tar file; its URL."""
    import s3fs  # noqa: PLC0415

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    bucket = f"photos-{port}"  # moto keeps buckets for the whole process
    store.mkdir(bucket)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, colour in (("a.png", (255, 0, 0)), ("b/c.png", (0, 0, 255))):
            encoded = io.BytesIO()
            Image.new("RGB", (9, 9), colour).save(encoded, "PNG")
            store.pipe_file(f"{bucket}/images/{name}", encoded.getvalue())
            member = tarfile.TarInfo(name)
            member.size = len(encoded.getvalue())
            tar.addfile(member, io.BytesIO(encoded.getvalue()))
    store.pipe_file(f"{bucket}/images/damaged.jpg", b"no image")
    store.pipe_file(f"{bucket}/list.txt", b"images/b/c.png\nimages/gone.png\n")
    store.pipe_file(f"{bucket}/photos.tar", archive.getvalue())
    yield f"s3://{bucket}"
    server.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of botocore and moto
@pytest.mark.parametrize(
    ("source", "code", "expected"),
    [
        (
            "images",
            3,
            [("a.png", "red", ""), ("b/c.png", "blue", ""), ("damaged.jpg", "", "UNDECODABLE_IMAGE")],
        ),
        ("list.txt", 3, [("images/b/c.png", "blue", ""), ("images/gone.png", "", "UNREADABLE_FILE")]),
        ("photos.tar", 0, [("a.png", "red", ""), ("b/c.png", "blue", "")]),
    ],
)
def test_objects_are_listed_and_read_as_files_are(
    bucket: str,
    publish: Publish,
    repository: Repository,
    tmp_path: Path,
    *,
    source: str,
    code: int,
    expected: list[tuple[str, str, str]],
) -> None:
    """A prefix, a list with relative keys, and a tar file that is read in ranges."""
    publish()
    places = ["--repository", str(repository.root), "--output", str(tmp_path / "out")]

    assert main(["batch", f"{bucket}/{source}", "--model", "colours", *places]) == code

    with (tmp_path / "out" / "part-00000.csv").open(newline="", encoding="utf-8") as file:
        found = [(row["path"], row["label"], row["error"].partition(":")[0]) for row in csv.DictReader(file)]
    assert found == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of botocore and moto
def test_the_repository_may_be_in_an_object_store(
    bucket: str, publish: Publish, repository: Repository, tmp_path: Path
) -> None:
    """Its version is copied once, and a damaged copy is repaired."""
    import s3fs  # noqa: PLC0415

    bundle = publish()
    s3fs.S3FileSystem().put(str(repository.root), f"{bucket}/", recursive=True)
    Image.new("RGB", (9, 9), (0, 0, 255)).save(tmp_path / "blue.png")
    cache = tmp_path / "cache"
    url = f"{bucket}/{repository.root.name}"

    codes: list[int] = []
    for output in ("first", "second"):
        places = ["--repository", url, "--repository-cache", str(cache), "--output", str(tmp_path / output)]
        codes.append(main(["batch", str(tmp_path / "blue.png"), "--model", "colours", *places]))
        (copy,) = cache.rglob("model.onnx")
        copy.chmod(0o644)
        copy.write_bytes(b"damaged")

    assert codes == [0, 0]
    assert json.loads((tmp_path / "second" / "job.json").read_bytes())["bundle_digest"] == bundle.digest
