"""What the page is made of: sections of tiles, pictures, galleries and tables, as values without HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Tone = Literal["plain", "good", "bad"]


@dataclass(frozen=True, slots=True)
class Tile:
    """One headline figure."""

    name: str
    value: str
    detail: str = ""  # such as the interval
    mark: str = ""  # refers to a note below the tiles


@dataclass(frozen=True, slots=True)
class Tiles:
    """Headline figures, and the notes that their marks refer to."""

    kind: ClassVar[str] = "tiles"
    tiles: tuple[Tile, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prose:
    """Paragraphs."""

    kind: ClassVar[str] = "prose"
    paragraphs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn picture. It is part of the page, and a file beside it: `name` with its format as suffix."""

    kind: ClassVar[str] = "picture"
    name: str  # begins the ids of a drawing, so letters, digits and hyphens
    alt: str  # what a person who cannot see it should know
    content: bytes
    format: Literal["svg", "png", "jpeg"]
    caption: str = ""
    title: str = ""
    wide: bool = False  # takes the whole row
    pixelated: bool = False  # pixels stay square when it is enlarged


@dataclass(frozen=True, slots=True)
class Photo:
    """One image of the data in a gallery."""

    image: str  # key of the page's album
    alt: str
    lines: tuple[str, ...]  # below the image, the first one stands out
    tone: Tone = "plain"
    hover: str = ""  # such as the path of the file


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images of the data."""

    kind: ClassVar[str] = "gallery"
    title: str
    photos: tuple[Photo, ...]
    caption: str = ""
    size: Literal["small", "medium", "large"] = "medium"
    columns: int = 0  # a grid of that many columns; 0: as many as fit
    name: str = ""  # of its file beside the page; empty: none


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell with a bar or a shade."""

    text: str
    share: float | None = None  # 0..1: length of the bar, or strength of the shade
    tone: Tone = "plain"
    hover: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that scrolls in its own box."""

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    text_columns: frozenset[int] = frozenset({0})  # aligned to the left
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Shaded counts, such as a confusion matrix: rows are true labels."""

    kind: ClassVar[str] = "matrix"
    title: str
    labels: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the drawn network."""

    name: str
    kind: str
    shape: str
    details: str  # parameters and multiply-accumulates
    width: float  # 0..1, side of its feature map relative to the input
    height: float  # 0..1, number of channels relative to the largest


@dataclass(frozen=True, slots=True)
class Diagram:
    """A network from its input to its output."""

    kind: ClassVar[str] = "diagram"
    title: str
    layers: tuple[Layer, ...]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """Blocks side by side where there is room."""

    kind: ClassVar[str] = "row"
    blocks: "tuple[Block, ...]"


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that are shown when a person asks for them."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: "tuple[Block, ...]"


Block = Tiles | Prose | Picture | Gallery | Table | Matrix | Diagram | Row | Fold


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report under one heading; one without blocks is left out."""

    key: str  # of its anchor
    title: str
    blocks: tuple[Block, ...]
    lead: str = ""  # one or two sentences below the heading


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the run, at the top of the page."""

    published: bool
    word: str
    text: str
    failed: tuple[tuple[str, str], ...] = ()  # checks: name and detail


@dataclass(frozen=True, slots=True)
class Page:
    """The whole report."""

    title: str
    subtitle: str
    verdict: Verdict
    summary: tuple[Block, ...]  # under the verdict
    sections: tuple[Section, ...]
    footer: str = ""
    album: Mapping[str, "AlbumImage"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AlbumImage:
    """An encoded image of the data; the page holds it once, however many galleries show it."""

    content: bytes
    format: Literal["png", "jpeg"]
    width: int
    height: int
    pixelated: bool


def pictures_of(blocks: Sequence[Block]) -> list[Picture]:
    """All drawn pictures of blocks, also those inside rows and folds."""
    found = []
    for block in blocks:
        if isinstance(block, Picture):
            found.append(block)
        elif isinstance(block, Row | Fold):
            found += pictures_of(block.blocks)
    return found
