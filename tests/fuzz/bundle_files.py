"""The files of a repository: manifest, golden examples, aliases, and the recipe that a report records."""

import io
import json
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import numpy as np

from serving.bundle import GOLDEN_FILE, MANIFEST_FILE, Manifest, Repository, read_golden
from serving.errors import LenserveError
from tests.colours import write_colours
from tests.fuzz.folders import fast_folder
from tests.fuzz.mutations import mutate, mutate_json, number
from training.recipe.recipe import recipe_from_settings, resolve

_MODEL = "colours"
METRICS_FILE = "metrics.json"
_NAMES = ["labels", "files", "geometry", "variants", "height", "provenance", "parameters", "continued_from"]
_Made = tuple[str, bytes]


class BundleFiles:
    """One repository, whose files are replaced."""

    def __init__(self, folder: Path) -> None:
        self._repository = Repository(folder)
        bundle = self._repository.publish(_MODEL, lambda to: write_colours(to, rotate=0, lie=False))
        self._folder, self._manifest = bundle.folder, bundle.manifest
        self._value = json.loads(bundle.manifest.to_json())
        self._golden = (self._folder / GOLDEN_FILE).read_bytes()
        self._settings = resolve("lenet5-fake").settings()
        self._check: dict[str, tuple[Callable[[Random], bytes], Callable[[bytes], str]]] = {
            "manifest": (self._make_manifest, self._check_manifest),
            "golden": (self._make_golden, self._check_golden),
            "aliases": (self._make_aliases, self._check_aliases),
            "recipe": (self._make_recipe, self._check_recipe),
        }

    def make(self, random: Random) -> _Made:
        """A kind of file, and its content."""
        kind = random.choices(list(self._check), (6, 1, 3, 3))[0]
        return kind, self._check[kind][0](random)

    async def check(self, made: _Made) -> str:
        """It is read, or refused with an error of one line."""
        kind, content = made
        try:
            outcome = self._check[kind][1](content)
        except LenserveError as error:
            message = str(error)
            assert message.isprintable() or "\n" not in message, f"not one line: {message!r}"
            message.encode()  # or else printing it fails
            outcome = type(error).__name__
        return f"{kind}: {outcome}"

    def _make_manifest(self, random: Random) -> bytes:
        return mutate_json(random, self._value, _NAMES)

    def _check_manifest(self, content: bytes) -> str:
        (self._folder / MANIFEST_FILE).write_bytes(content)
        manifest = self._repository.read_manifest(_MODEL, 1).manifest
        again = Manifest.from_json(manifest.to_json())
        assert again == manifest, "what is written is not what was read"
        return "read"

    def _make_aliases(self, random: Random) -> bytes:
        return mutate_json(random, {"best": {"version": 1}, "old": {"version": 7}}, ["version"])

    def _check_aliases(self, content: bytes) -> str:
        (self._folder.parent / "aliases.json").write_bytes(content)
        return (
            "read" if all(version >= 1 for version in self._repository.aliases(_MODEL).values()) else "wrong"
        )

    def _make_golden(self, random: Random) -> bytes:
        choice = random.random()
        if choice < 0.4:
            return mutate(random, self._golden, most=3)
        # What is in the archive decides more than the archive does.
        arrays = {name: _array(random) for name in random.sample(("images", "probabilities", "other"), 2)}
        content = io.BytesIO()
        with zipfile.ZipFile(
            content, "w", random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))
        ) as archive:
            for name, array in arrays.items():
                archive.writestr(f"{name}.npy", array)
        return content.getvalue()

    def _check_golden(self, content: bytes) -> str:
        (self._folder / GOLDEN_FILE).write_bytes(content)
        golden = read_golden(self._folder, self._manifest)
        assert golden.images.shape[1:] == self._manifest.geometry.shape
        return "read"

    def _make_recipe(self, random: Random) -> bytes:
        return mutate_json(
            random, self._settings, ["data", "data.source.x", "network", "training.seed", "name.x"]
        )

    def _check_recipe(self, content: bytes) -> str:
        try:
            settings = json.loads(content)
        except (ValueError, RecursionError):
            return "not JSON"
        recipe_from_settings(settings, METRICS_FILE).digest()
        return "read"


def _array(random: Random) -> bytes:
    """Return a file in numpy's format with a changed header or content."""
    content = io.BytesIO()
    dtype = random.choice((np.uint8, np.float32, np.float64, np.int64, np.bool_))
    np.save(content, np.zeros(random.choice(((3, 8, 8, 3), (3, 3), (0,), (), (33, 8, 8, 3))), dtype))
    array = content.getvalue()
    if random.random() < 0.3:
        array = array.replace(b"(3, ", b"(%d, " % number(random), 1)
    return mutate(random, array[:128], most=2) + array[128:] if random.random() < 0.5 else array


@asynccontextmanager
async def open_bundle_files() -> AsyncIterator[BundleFiles]:
    """Open the target."""
    with fast_folder() as folder:
        yield BundleFiles(folder)
