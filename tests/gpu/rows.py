"""What a part found, row by row: on disk as soon as it is known, so that a part that is ended keeps it."""

import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.gpu.sizes import Sizes, sizes_of


@dataclass(frozen=True, slots=True)
class Row:
    """One finding."""

    what: str
    figure: str  # as people read it
    values: Mapping[str, Any] = field(default_factory=dict)  # as it was measured
    wrong: str = ""  # why it fails the part; empty: it does not


@dataclass(frozen=True, slots=True)
class PartOptions:
    """What every part is started with."""

    device: str  # cuda or cpu
    data_root: Path | None

    @property
    def sizes(self) -> Sizes:
        """How much is measured on this device."""
        return sizes_of(self.device)


class Rows:
    """The rows of one part. A class because each new row rewrites the file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._rows: list[Row] = []

    def add(self, what: str, figure: str, *, wrong: str = "", **values: Any) -> None:
        """Keep one finding, in the place of an earlier one of that name, and print it."""
        row = Row(what, figure, values, wrong)
        places = {each.what: place for place, each in enumerate(self._rows)}
        if what in places:
            self._rows[places[what]] = row
        else:
            self._rows.append(row)
        staged = self._file.with_suffix(".new")
        staged.write_text(json.dumps([asdict(row) for row in self._rows], indent=1))
        staged.replace(self._file)
        print(f"{what}: {figure}{f'  WRONG: {wrong}' if wrong else ''}")

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Turn what goes wrong inside into a row, so that the rest of the part goes on."""
        try:
            yield
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it is a finding
            traceback.print_exc()
            self.add(what, "failed", wrong=f"{type(error).__name__}: {error}"[:300])

    @property
    def wrong(self) -> int:
        """The number of rows that fail the part."""
        return sum(bool(row.wrong) for row in self._rows)


def read_rows(file: Path) -> list[Row]:
    """The rows that a part left; none where it left nothing."""
    return [Row(**each) for each in json.loads(file.read_text())] if file.exists() else []


def markdown(parts: Mapping[str, Sequence[Row]], circumstances: str) -> str:
    """One table over all parts, and below it how it was made."""
    lines = ["| part | what | result |", "| --- | --- | --- |"]
    for part, rows in parts.items():
        for row in rows:
            figure = f"{row.figure} **wrong: {row.wrong}**" if row.wrong else row.figure
            lines.append(f"| {part} | {_cell(row.what)} | {_cell(figure)} |")
    return "\n".join([*lines, "", circumstances, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
