"""Files are replaced as a whole."""

from pathlib import Path

from training.files import replace_file


def test_replacing_leaves_one_file_with_the_new_content(tmp_path: Path) -> None:
    """The old content goes, and nothing stays beside."""
    path = tmp_path / "state.json"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
