"""What a batch classifies: folders, lists, tables, tar files and URLs, in a fixed order."""

import io
import re
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from serving.batch_job.reading import UnreadableFile
from serving.batch_job.sources import Source, open_source
from serving.bundle import ImageLimits
from serving.errors import UsageError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three images and a text file; each image holds its name."""
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for name in ("c.jpg", "a.PNG", "b/d.webp", "notes.txt"):
        (folder / name).write_bytes(name.encode())
    return folder


def opened(source: object, *, column: str = "path", root: str | None = None) -> Source:
    """Open a source with the usual limits."""
    return open_source(str(source), column=column, root=root, limits=ImageLimits())


def contents(source: Source) -> list[bytes]:
    """Read every image as an engine does."""
    batch = source.batch(range(len(source.paths)))
    names = ("path", "offset", "size_bytes") if "offset" in batch else ("path",)
    return [source.reader.read(*row) for row in zip(*(batch[name] for name in names), strict=True)]


def write_tar(path: Path, photos: Path) -> Path:
    """A tar file of the folder."""
    with tarfile.open(path, "w") as archive:
        for name in ("c.jpg", "notes.txt", "b/d.webp"):
            archive.add(photos / name, name)
    return path


def test_a_folder_is_listed_in_order_and_says_what_it_ignores(photos: Path) -> None:
    """Images by their suffix, relative and sorted; other files are counted."""
    source = opened(photos)

    assert source.paths == ["a.PNG", "b/d.webp", "c.jpg"]
    assert contents(source) == [b"a.PNG", b"b/d.webp", b"c.jpg"]
    assert source.notes == ("1 file ignored (.txt): not a supported image type",)
    assert source.batch(range(1, 3))["row"].tolist() == [1, 2]


def test_a_url_of_a_folder_is_listed_as_the_folder(photos: Path) -> None:
    """The file:// of fsspec stands for every URL."""
    source = opened(f"file://{photos}")

    assert source.paths == ["a.PNG", "b/d.webp", "c.jpg"]
    assert contents(source) == [b"a.PNG", b"b/d.webp", b"c.jpg"]
    assert source.digest == opened(photos).digest


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_list_names_paths_relative_to_its_folder(photos: Path, prefix: str) -> None:
    """One path a line; a byte order mark, CRLF and empty lines do not matter."""
    (photos / "list.txt").write_bytes(b"\xef\xbb\xbfc.jpg\r\n\n" + f"{prefix}{photos}/b/d.webp\n".encode())

    source = opened(f"{prefix}{photos / 'list.txt'}")

    assert source.paths == ["c.jpg", f"{prefix}{photos}/b/d.webp"]
    if not prefix:
        assert contents(source) == [b"c.jpg", b"b/d.webp"]


def test_stdin_is_a_list_relative_to_the_root(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`find ... | lenserve batch -`; --root says what relative paths start at."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"c.jpg\nb/d.webp\n")))

    source = opened("-", root=str(photos))

    assert contents(source) == [b"c.jpg", b"b/d.webp"]


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_tables_have_a_column_of_paths(photos: Path, prefix: str) -> None:
    """CSV, TSV and Parquet; a row without a path stays a row."""
    (photos / "t.csv").write_text('id,file\n1,c.jpg\n2\n3,"b/d.webp"\n', encoding="utf-8-sig")
    (photos / "t.tsv").write_text("id\tfile\n1\tc.jpg\n2\t\n3\tb/d.webp\n")
    parquet.write_table(
        pa.table({"id": [1, 2, 3], "file": ["c.jpg", None, "b/d.webp"]}), photos / "t.parquet"
    )

    for name in ("t.csv", "t.tsv", "t.parquet"):
        assert opened(f"{prefix}{photos / name}", column="file").paths == ["c.jpg", "", "b/d.webp"]


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_tar_file_is_read_in_place(photos: Path, tmp_path: Path, prefix: str) -> None:
    """Members are read at their offsets, in any order, without unpacking."""
    source = opened(f"{prefix}{write_tar(tmp_path / 'photos.tar', photos)}")

    assert source.paths == ["c.jpg", "b/d.webp"]
    assert contents(source) == [b"c.jpg", b"b/d.webp"]
    assert contents(source)[1:] == [b"b/d.webp"]


def test_links_to_folders_are_followed_but_not_in_circles(photos: Path, tmp_path: Path) -> None:
    """Also two that lead to each other; a link to nothing or to itself is a row, which says so later."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "e.jpg").write_bytes(b"e")
    (photos / "more").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(photos)
    (photos / "b" / "up").symlink_to("..")
    (photos / "lost.jpg").symlink_to("nothing")
    (photos / "me.jpg").symlink_to("me.jpg")

    assert opened(photos).paths == ["a.PNG", "b/d.webp", "c.jpg", "lost.jpg", "me.jpg", "more/e.jpg"]


def add(archive: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "") -> None:
    """Add a member that holds its name, or a link."""
    member = tarfile.TarInfo(name)
    content = name.encode() if kind == tarfile.REGTYPE else b""
    member.type, member.linkname, member.size = kind, link, len(content)
    archive.addfile(member, io.BytesIO(content))


def test_a_link_in_a_tar_file_has_the_bytes_of_what_it_names(tmp_path: Path) -> None:
    """Hard links and others, over several; what has no bytes stays a row, with an error."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "./b/good.png")
        add(archive, "hard.png", tarfile.LNKTYPE, link="b/good.png")
        add(archive, "c/soft.png", tarfile.SYMTYPE, link="../d.png")
        add(archive, "d.png", tarfile.SYMTYPE, link="b/../hard.png")
        add(archive, "e.png")
        for name, link in (("lost.png", "nothing"), ("circle.png", "circle.png")):
            add(archive, name, tarfile.SYMTYPE, link=link)
        add(archive, "pipe.png", tarfile.FIFOTYPE)
        add(archive, "folder.png", tarfile.DIRTYPE)

    source = opened(tmp_path / "a.tar")

    assert source.paths[5:] == ["lost.png", "circle.png", "pipe.png"]
    readable = source.batch(range(5))
    rows = zip(source.paths, readable["offset"], readable["size_bytes"], strict=False)
    assert [source.reader.read(*row) for row in rows] == [b"./b/good.png"] * 4 + [b"e.png"]
    for place in range(5, 8):
        with pytest.raises(UnreadableFile, match="the archive has no bytes for this name"):
            source.reader.read(source.paths[place], 0, int(source.batch(range(8))["size_bytes"][place]))


def test_a_tar_file_that_is_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    """Python's tarfile would end its list there, and the images behind it would have no rows."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a.png", "b.png", "c.png"):
            add(archive, name)
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[1024 + 148] ^= 1  # in the checksum of the second header
    (tmp_path / "a.tar").write_bytes(content)

    with pytest.raises(
        UsageError, match=r"a\.tar is not a sound tar file: the header at byte 1024 is damaged"
    ):
        opened(tmp_path / "a.tar")


def test_cells_of_csv_may_be_long(photos: Path) -> None:
    """Python's limit is 131,072 characters."""
    (photos / "t.csv").write_text(f"image,path\n{'A' * 200_000},c.jpg\n")

    assert opened(photos / "t.csv").paths == ["c.jpg"]


def test_the_digest_changes_with_the_images(photos: Path) -> None:
    """Another file, another size or another list is another source."""
    before = opened(photos).digest
    assert opened(photos).digest == before
    (photos / "c.jpg").write_bytes(b"longer than before")
    resized = opened(photos).digest
    (photos / "e.jpg").write_bytes(b"e")
    assert len({before, resized, opened(photos).digest}) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone", None, "gone: no such file or directory"),
        ("empty", b"", "no images in .*empty: expected .bmp, .gif"),
        ("list.txt", b"\n", "list.txt names no images: write one path a line"),
        (
            "t.csv",
            b"id,file\n1,c.jpg\n",
            "t.csv has no column 'path', its columns are id, file: set --column",
        ),
        ("t.csv", b"", "t.csv has no column 'path', its columns are none: set --column"),
        (
            "t.csv",
            b'path\na.jpg\n"b.jpg\nc.jpg\n',
            "t.csv is not CSV: line 4: unexpected end of data; correct its quotes",
        ),
        ("t.parquet", b"no table", "t.parquet is not Parquet: "),
        ("a.tar", b"no archive at all", "a.tar is not a sound tar file: "),
        (
            "a.tar.gz",
            b"",
            "a.tar.gz is compressed, so its images cannot be read in parts: decompress it first",
        ),
        ("notes.md", b"", "notes.md has the suffix '.md', expected a directory, a list"),
        ("file://none/list.txt", None, "list.txt cannot be read: No such file"),
        ("gopher://host/list.txt", None, "cannot be opened: .*gopher"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    """What is wrong with which source, and what to do."""
    source = tmp_path / name if "://" not in name else name
    if name == "empty":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(UsageError, match=message) as refused:
        opened(source)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (1, "int64"),
        (["a.jpg"], "list<element: string>"),
        ({"bytes": b"", "path": "a.jpg"}, "struct<bytes: binary, path: string>"),
    ],
)
def test_a_column_that_is_not_text_is_refused(tmp_path: Path, cell: object, kind: str) -> None:
    """A wrong --column is found before any image is read."""
    parquet.write_table(pa.table({"path": [cell]}), tmp_path / "t.parquet")

    with pytest.raises(UsageError, match=re.escape(f"is {kind}, expected string: set --column")):
        opened(tmp_path / "t.parquet")
