"""TOML files of operators and users: tokens, options of the server, recipes."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from pydantic import ValidationError

from serving.cli import Serve
from serving.errors import LenserveError
from serving.rpc.bearer_tokens import Tokens
from serving.validation_errors import problems
from tests.fuzz.folders import fast_folder
from tests.fuzz.mutations import INTERESTING, mutate
from training.recipe.recipe import resolve

_Made = tuple[str, bytes]

_TOKENS = b"""# who may do what
[tokens]
"a long token" = ["*"]
other = ["colours", 'digits']
"\\u00e4" = []
"""
_OPTIONS = b"""repository = "."
grpc-port = 0
max_images = 12
workers = 1
max-queue-delay-s = 0.5
precision = "auto"
device = "cuda:1"
log-json = true
shared-memory-pattern = "a.*"
"""
_RECIPE = b"""name = "ours"
[data]
source = "fake"
fake_classes = 3
[geometry]
height = 28
width = 28
channels = 1
fit = "crop"
crop_fraction = 0.875
[network]
name = "lenet5"
[training]
epochs = 2
learning_rate = 1e-3
[gates]
min_accuracy = 0.5
"""
_VALUES = (
    b"1", b"-1", b"0x10", b"1e400", b"inf", b"-nan", b"true", b'""', b'"x"', b"'''\nx'''", b"[]",
    b"[1, 'a', [2]]", b"{}", b"{a = 1}",
    b"2026-01-31", b"12:00:00", b"9" * 30, b'"\\ud800"', b'"\\u0000"', b'"' + b"x" * 5000 + b'"',
    b"[" * 2000, b"{a=" * 500,
)  # fmt: skip


class SettingsFiles:
    """One file, which is replaced."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "settings.toml"
        self._check: dict[str, tuple[bytes, Callable[[], str]]] = {
            "tokens": (_TOKENS, self._read_tokens),
            "options": (_OPTIONS, self._read_options),
            "recipe": (_RECIPE, self._read_recipe),
        }

    def make(self, random: Random) -> _Made:
        """A kind of file, and its content."""
        kind = random.choice(list(self._check))
        text = self._check[kind][0]
        for _ in range(random.choice((0, 1, 1, 2))):
            text = _change_line(random, text)
        return kind, mutate(random, text, most=3) if random.random() < 0.4 else text

    async def check(self, made: _Made) -> str:
        """It is read, or refused with one printable line."""
        kind, content = made
        self._path.write_bytes(content)
        try:
            outcome = self._check[kind][1]()
        except LenserveError as error:
            message = str(error)
            message.encode()  # or else printing it fails
            outcome = type(error).__name__
        return f"{kind}: {outcome}"

    def _read_tokens(self) -> str:
        Tokens.read(self._path)
        return "read"

    def _read_options(self) -> str:
        try:
            Serve(config=self._path)
        except ValidationError as error:
            for problem in problems(error, Serve):
                problem.text.encode()
            return "invalid value"
        return "read"

    def _read_recipe(self) -> str:
        recipe = resolve(str(self._path))
        recipe.digest()
        return "read"


def _change_line(random: Random, text: bytes) -> bytes:
    lines = text.split(b"\n")
    place = random.randrange(len(lines))
    key, equals, value = lines[place].partition(b" = ")
    choice = random.random()
    if choice < 0.5 and equals:
        value = str(random.choice(INTERESTING)).encode() if random.random() < 0.3 else random.choice(_VALUES)
        lines[place] = key + equals + value
    elif choice < 0.7:
        lines[place:place] = [lines[place]] * random.choice((1, 2))
    elif choice < 0.8:
        del lines[place]
    elif choice < 0.9:
        lines[place] = key + random.choice((b".x", b"x", b"")) + equals + value
    else:
        random.shuffle(lines)
    return b"\n".join(lines)


@asynccontextmanager
async def open_settings_files() -> AsyncIterator[SettingsFiles]:
    """Open the target."""
    with fast_folder() as folder:
        yield SettingsFiles(folder)
