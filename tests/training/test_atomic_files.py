"""Files are replaced atomically."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from training.atomic_files import exclusive_lock, replace_file


def test_replacing_leaves_one_file_with_the_new_content(tmp_path: Path) -> None:
    """The old content is gone, and no temporary file is left."""
    path = tmp_path / "state.json"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_one_thread_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    """The first of many creates the file and the others find it; locks on other files do not block."""
    made = []

    def make_once(name: str) -> bytes:
        path = tmp_path / "cache" / name
        with exclusive_lock(path.with_suffix(".lock")):
            if not path.exists():
                made.append(name)
                replace_file(path, name.encode())
        return path.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(make_once, ["a"] * 50)) == [b"a"] * 50
    assert made == ["a"]
    with exclusive_lock(tmp_path / "cache" / "a.lock"), exclusive_lock(tmp_path / "cache" / ".lock"):
        assert make_once("c") == b"c"
