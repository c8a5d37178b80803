"""What the tables of the benchmarks share: how a number is written, and how a page's table is replaced."""

import statistics
from collections.abc import Sequence
from pathlib import Path


def spread(values: Sequence[float]) -> str:
    """Median [lowest, highest]; empty without values."""
    if not values:
        return ""
    return f"{number(statistics.median(values))} [{between(values)}]"


def between(values: Sequence[float]) -> str:
    """Lowest, highest."""
    return f"{number(min(values))}, {number(max(values))}"


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def verdict(misses: Sequence[str]) -> str:
    """What a row has missed, or that it met everything."""
    return f"**{'; '.join(misses)}**" if misses else "met"


_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"


def has_table(file: Path) -> bool:
    """Whether there is a file with the two marks."""
    return file.is_file() and _END in file.read_text().partition(_BEGIN)[2]


def replace_table(file: Path, text: str, *, name: str = "table") -> None:
    """Put the table between the two marks with its name in a Markdown file."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = file.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{file} has no {begin} and {end}")
    file.write_text(f"{before}{begin}\n{text}{end}{after}")
