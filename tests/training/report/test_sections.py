"""What the parts of a report find in data, networks and files."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Bundle, Geometry
from training.data import DataReport, Dataset
from training.data.splits import Split
from training.evaluation.evaluate import score
from training.networks import build
from training.recipe import NetworkRecipe, resolve
from training.report.album import Album, encode
from training.report.blocks import Fold, Gallery, Photo, Table
from training.report.charts import INK, chart, svg
from training.report.confusion import confused_block, confusion_matrix
from training.report.data_findings import data_blocks, equal_images, near_pairs
from training.report.embedding_map import map_positions
from training.report.latency import measure_latency
from training.report.network_diagram import layer_costs, network_diagram
from training.report.sentences import what_it_confuses, what_it_is_good_at, what_was_wrong
from training.report.settings import settings_blocks

LABELS = ("ant", "bee")
CLEAN = DataReport(
    counts={"train": {"ant": 2, "bee": 2}, "validation": {"ant": 0, "bee": 0}, "test": {"ant": 1, "bee": 0}},
    undecodable={},
    ignored_files=0,
    repeated={"train": 0, "validation": 0, "test": 0},
    removed={"train": (), "validation": ()},
    conflicts=(),
)


def split(pixels: list[int], labels: list[int], names: list[str]) -> Split:
    """Plain images of these grey levels."""
    images = np.stack([np.full((8, 8, 1), level, np.uint8) for level in pixels])
    return Split(images, np.array(labels, np.int64), tuple(names))


@pytest.fixture
def dataset() -> Dataset:
    """Two equal images with one label, two with different ones, and names that contain " and "."""
    train = split([1, 1, 2, 2], [0, 0, 0, 1], ["a and b", "b", "c and d", "d"])
    empty = train.take(slice(0))
    return Dataset(LABELS, train, empty, split([9], [0], ["e"]))


def test_duplicates_and_contradictions_are_shown(dataset: Dataset) -> None:
    """Both groups are found again by their pixels, and each image has its split, label and name."""
    assert equal_images(dataset) == [[("train", 0), ("train", 1)], [("train", 2), ("train", 3)]]
    report = CLEAN.model_copy(update={"conflicts": ("c and d is ant, d is bee",), "repeated": {"train": 2}})
    _, _, *galleries = data_blocks(report, dataset, Album())
    titles = {gallery.title: gallery for gallery in galleries if isinstance(gallery, Gallery)}
    assert set(titles) == {"Equal images with different labels", "Duplicates"}
    shown = titles["Equal images with different labels"].photos
    assert [photo.lines for photo in shown] == [("1: ant", "train", "c and d"), ("1: bee", "train", "d")]


def test_pairs_of_near_duplicates_are_found_by_name(dataset: Dataset) -> None:
    """Also if the names themselves contain the word between them; images that were removed are skipped."""
    pairs = ("a and b and c and d", "b and gone")
    report = CLEAN.model_copy(update={"near_duplicates": pairs})
    assert list(near_pairs(report, dataset)) == [(("train", 0), ("train", 2))]


def test_three_sentences_follow_from_the_numbers() -> None:
    """Best labels, most frequent errors, and findings in the data, in the singular too."""
    truth = np.repeat([0, 1, 2], 20)
    predicted = truth.copy()
    predicted[20:25] = 2
    predicted[40] = 0
    scores = score(np.eye(3, dtype=np.float32)[predicted], truth, ["cat", "dog", "fox"])
    assert what_it_is_good_at(scores) == (
        "It is right on 90.0% of 60 test images (79.9% to 95.3%), and best at cat (100.0% of 20) and fox "
        "(95.0% of 20)."
    )
    assert what_it_confuses(scores) == (
        "Its most frequent errors are to predict fox for dog (5 of 20) and cat for fox (1 of 20)."
    )
    perfect = score(np.eye(3, dtype=np.float32)[truth], truth, ["cat", "dog", "fox"])
    assert what_it_confuses(perfect) == "It confuses nothing: no test image has a wrong prediction."
    assert "equally good at every label" in what_it_is_good_at(perfect)
    assert what_was_wrong(CLEAN) == "The checks found nothing wrong with the data."
    found = CLEAN.model_copy(update={"undecodable": {"x.jpg": "cut"}, "repeated": {"train": 2, "test": 1}})
    assert what_was_wrong(found) == (
        "In the data, 1 unreadable file was skipped and 3 images are duplicates within their split."
    )


def test_a_thousand_labels_show_the_block_that_is_confused_most() -> None:
    """Counts and row shares of the labels with the most errors, and how much of all errors that is."""
    truth = np.arange(1000).repeat(3)
    predicted = truth.copy()
    predicted[truth == 17] = 900
    predicted[truth == 900] = 17
    predicted[truth == 5] = 6
    scores = score(np.eye(1000, dtype=np.float32)[predicted], truth, [f"n{number}" for number in range(1000)])
    matrix = confusion_matrix(scores)
    assert len(matrix.labels) == 4
    assert set(matrix.labels) == {"n5", "n6", "n17", "n900"}
    assert "100% of all errors" in matrix.caption
    place = {label: number for number, label in enumerate(matrix.labels)}
    cell = matrix.cells[place["n17"]][place["n900"]]
    assert (cell.text, cell.hover) == ("3\n100.0%", "true n17, predicted n900: 3 images, 100.0% of the row")
    assert confused_block(np.eye(3, dtype=np.int64)) == [0, 1, 2]


def test_the_network_has_the_costs_of_its_tutorials() -> None:
    """LeNet-5: shapes, parameters and multiply-accumulates in the order of the layers."""
    geometry = Geometry(height=28, width=28, channels=1)
    network = build(NetworkRecipe(), geometry, 10)
    rows = {cost.name.removeprefix("trunk."): cost for cost in layer_costs(network, geometry)}
    assert list(rows) == ["conv1", "pool1", "conv2", "pool2", "flatten1", "dense1", "dense2", "head"]
    assert rows["conv1"].macs == 28 * 28 * 6 * 25
    assert rows["conv2"].macs == 10 * 10 * 16 * 6 * 25
    assert rows["dense1"].macs == 400 * 120
    assert rows["conv1"].kind == "Conv2d 5 x 5, ReLU"
    diagram = network_diagram("lenet5", network, geometry)
    assert diagram.caption.startswith("61,706 parameters, 417 k multiply-accumulates.")
    assert [layer.shape for layer in diagram.layers[:2]] == ["28 x 28 x 1", "28 x 28 x 6"]


def test_a_deep_network_is_drawn_block_by_block() -> None:
    """At most two dozen rows; parameters are those of the whole network."""
    geometry = Geometry(height=64, width=64, channels=3)
    network = build(NetworkRecipe(name="resnet50"), geometry, 10)
    diagram = network_diagram("resnet50", network, geometry)
    assert len(diagram.layers) <= 25
    assert f"{network.parameter_count():,} parameters" in diagram.caption


def test_latency_is_the_median_of_real_runs(digits_bundle: Bundle) -> None:
    """Both batch sizes, several runs each."""
    found = measure_latency(digits_bundle.model_file, np.zeros((3, 28, 28, 1), np.uint8))
    assert [each.batch for each in found] == [1, 32]
    assert all(0 < each.median_s <= each.slowest_s and each.runs >= 3 for each in found)


def test_the_map_keeps_groups_together() -> None:
    """Two distant groups do not mix; more features than images, and equal images, are no problem."""
    random = np.random.default_rng(0)
    groups = np.repeat([0.0, 50.0], 40)[:, None]
    positions = map_positions((groups + random.normal(size=(80, 200))).astype(np.float32))
    centres = positions[:40].mean(axis=0), positions[40:].mean(axis=0)
    spread = max(positions[:40].std(), positions[40:].std())
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread
    assert map_positions(np.ones((30, 8), np.float32)).shape == (30, 2)


def test_settings_that_differ_are_listed() -> None:
    """And all of them are folded."""
    recipe = resolve("lenet5-digits", ["training.epochs=7"])
    table, fold = settings_blocks(recipe.settings())
    assert isinstance(table, Table)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["training.epochs"] == ("7", "20")
    assert "training.momentum" not in rows
    assert "name" not in rows
    assert isinstance(fold, Fold)
    assert "training.momentum" in str(fold.blocks)


def test_images_in_the_report_do_not_change_a_digest() -> None:
    """A run without images in its report is the same run."""
    plain, private = resolve("lenet5-digits"), resolve("lenet5-digits", ["report.images=none"])
    assert plain.digest() == private.digest()
    assert private.settings()["report.images"] == "none"


def test_images_are_encoded_at_a_sensible_size() -> None:
    """Small ones without loss and with square pixels; photographs as JPEG of at most 224 pixels."""
    small = encode(np.zeros((28, 28, 1), np.uint8))
    assert (small.format, small.pixelated, small.width) == ("png", True, 28)
    large = encode(np.zeros((300, 600, 3), np.uint8))
    assert (large.format, large.pixelated, large.width, large.height) == ("jpeg", False, 224, 112)


def test_a_sheet_has_every_photo_and_any_caption(tmp_path: Path) -> None:
    """Long captions and letters beyond Latin are drawn."""
    album = Album()
    key = album.add_pixels("one", np.full((10, 20, 3), 200, np.uint8))
    photos = tuple(Photo(key, "", ("муравей " * 9, "true bee\nline"), "bad") for _ in range(7))
    (tmp_path / "sheet.png").write_bytes(album.sheet(Gallery("", photos, columns=3)))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 154 + 10, 3 * (154 + 34) + 10)
    assert len(album.images) == 1


def test_charts_follow_the_theme_of_the_page() -> None:
    """Colours are variables with a value for a page without them; ids differ from chart to chart."""
    figure, axes = chart()
    axes.plot([0, 1], [0, 1], color=INK, label="$a_1$ <b>")
    axes.legend()
    text = svg(figure, "first").decode()
    assert text.startswith("<svg")
    assert f"var(--ink, {INK})" in text
    assert INK not in text.replace(f"var(--ink, {INK})", "")
    assert "$a_1$ &lt;b&gt;" in text
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    assert ids
    assert all(each.startswith("first-") for each in ids)
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert used <= ids
