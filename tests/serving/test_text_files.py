"""Files that people write, with the byte order marks of their editors: every kind is read."""

import codecs
import json
from pathlib import Path

import pytest

from serving.bundle import Manifest, Repository
from serving.commandline import DONE, Command, Commands, print_line, run_commands
from serving.rpc.bearer_tokens import Tokens
from serving.text_files import decode_text, read_text, without_mark
from tests.colours import Publish

MARKS = {
    "no mark": (b"", "utf-8"),
    "UTF-8": (codecs.BOM_UTF8, "utf-8"),
    "UTF-16": (codecs.BOM_UTF16_LE, "utf-16-le"),
    "UTF-16, big-endian": (codecs.BOM_UTF16_BE, "utf-16-be"),
}


def _marked(text: str, mark: str) -> bytes:
    first, encoding = MARKS[mark]
    return first + text.encode(encoding)


@pytest.mark.parametrize("mark", MARKS)
class TestAnyMark:
    """Windows editors write UTF-8 with a mark, and PowerShell's `>` writes UTF-16."""

    def test_the_text_has_no_mark(self, mark: str, tmp_path: Path) -> None:
        """Whatever the encoding."""
        (tmp_path / "file").write_bytes(_marked('a = "ä€"\r\n', mark))

        assert read_text(tmp_path / "file") == 'a = "ä€"\r\n'
        assert without_mark(_marked("ä", mark)) == "ä".encode()

    def test_a_config_file_is_read(
        self, mark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Of every command."""

        class Greet(Command):
            """Greet."""

            name: str

            def run(self) -> int:
                print_line(self.name)
                return DONE

        (tmp_path / "config.toml").write_bytes(_marked('name = "Zoë"\n', mark))
        commands: Commands = {"greet": Greet}
        assert (
            run_commands("program", "", commands, ["greet", "--config", str(tmp_path / "config.toml")])
            == DONE
        )
        assert capsys.readouterr().out == "Zoë\n"

    def test_tokens_are_read(self, mark: str, tmp_path: Path) -> None:
        """And grant what they say."""
        (tmp_path / "tokens.toml").write_bytes(_marked('[tokens]\n"abc" = ["digits"]\n', mark))

        assert Tokens.read(tmp_path / "tokens.toml").grant("Bearer abc").models == {"digits"}

    def test_aliases_and_manifests_are_read(
        self, mark: str, repository: Repository, publish: Publish
    ) -> None:
        """Of models that were edited by hand."""
        bundle = publish()
        aliases = json.dumps({"stable": {"version": 1}})
        (repository.root / "colours" / "aliases.json").write_bytes(_marked(aliases, mark))

        assert repository.aliases("colours") == {"stable": 1}
        assert Manifest.from_json(_marked(bundle.manifest.to_json().decode(), mark)) == bundle.manifest


@pytest.mark.parametrize("content", [b"\xff", codecs.BOM_UTF16_LE + b"a", b"a\xff\xfe"])
def test_what_is_no_text_is_refused(content: bytes) -> None:
    """And left unchanged where its reader has a message for it."""
    with pytest.raises(UnicodeDecodeError):
        decode_text(content)
    assert without_mark(content) == content
