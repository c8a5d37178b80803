"""The report as an HTML page: its verdict, its figures, and that it needs nothing else."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from serving.bundle import Bundle
from training.evaluation.evaluate import score
from training.report.album import Album
from training.report.blocks import Picture, Section, Tile, Tiles
from training.report.evidence import Evidence
from training.report.gather import evidence_of_bundle
from training.report.metrics import METRICS_FILE, Metrics
from training.report.page import render
from training.report.report import make_page
from training.report.verdict import summary_blocks, verdict

PNG = bytes.fromhex("89504e470d0a1a0a")


@pytest.fixture(scope="module")
def evidence(digits_bundle: Bundle) -> Evidence:
    """Everything that can be known of the digits' run."""
    return evidence_of_bundle(digits_bundle.folder, None, machine="this machine")[0]


def tiles(evidence: Evidence) -> dict[str, Tile]:
    """The headline figures by name."""
    block = summary_blocks(evidence)[0]
    assert isinstance(block, Tiles)
    return {tile.name: tile for tile in block.tiles}


def with_metrics(evidence: Evidence, **changes: object) -> Evidence:
    """The same evidence with other metrics."""
    return replace(evidence, metrics=evidence.metrics.model_copy(update=changes))


def test_every_score_has_its_interval(evidence: Evidence) -> None:
    """Two labels have AUC and balanced accuracy; a score that a run lacks has no tile."""
    positive = np.linspace(0, 1, 40)  # (40,)
    truth = (positive + np.resize([0.3, -0.3], 40) > 0.5).astype(np.int64)  # (40,)
    scores = score(np.stack([1 - positive, positive], axis=1), truth, ["normal", "pneumonia"])
    found = tiles(with_metrics(evidence, test=scores))
    assert scores.auc is not None
    assert scores.balanced_accuracy is not None
    assert found["AUC"].value == f"{scores.auc.value:.4f}"
    assert found["AUC"].detail == f"95 % interval {scores.auc.low:.4f} to {scores.auc.high:.4f}"
    assert found["balanced accuracy"].value == f"{scores.balanced_accuracy.value:.2%}"
    assert "top-5 accuracy" not in found
    assert "top-5 accuracy" in tiles(evidence)
    assert "AUC" not in tiles(evidence)


def test_scores_on_images_that_chose_something_are_marked(evidence: Evidence) -> None:
    """Validation chose the epoch of this run; a recipe may also have been tuned on the test split."""
    assert evidence.metrics.headline()["validation_chose_epoch"] == 1
    assert tiles(evidence)["validation accuracy"].mark == "‡"
    assert tiles(evidence)["test accuracy"].mark == ""
    page = render(make_page(evidence, Album()))
    assert ">‡ Optimistic, because validation images chose the epoch<" in page
    assert "†" not in page
    held_out = with_metrics(evidence, validation_chose_epoch=False, tuned_on_test="the learning rate")
    assert held_out.metrics.headline()["validation_chose_epoch"] == 0
    assert tiles(held_out)["validation accuracy"].mark == ""
    assert tiles(held_out)["test accuracy"].mark == "†"
    page = render(make_page(held_out, Album()))
    assert ">† Optimistic, because test images chose the learning rate<" in page
    assert "‡" not in page
    values = evidence.metrics.model_dump(mode="json")
    del values["validation_chose_epoch"], values["tuned_on_test"]
    assert "validation_chose_epoch" not in Metrics.model_validate(values).headline()


def test_the_page_names_the_kernels_beside_the_device(digits_bundle: Bundle, evidence: Evidence) -> None:
    """Metrics of older runs do not have them and are still read."""
    footer = make_page(evidence, Album()).footer
    assert f"on {evidence.metrics.machine}, reproducible kernels. " in footer
    values = json.loads((digits_bundle.folder / "report" / METRICS_FILE).read_text())
    del values["kernels"]
    older = replace(evidence, metrics=Metrics.model_validate(values))
    assert "kernels" not in make_page(older, Album()).footer


def test_a_refused_run_does_not_look_like_a_published_one(evidence: Evidence) -> None:
    """Another word, sign and colour, and the checks that failed with value and limit."""
    assert verdict(evidence).text == "All 7 checks passed. This is version 1 of lenet5-digits, the first one."
    first, *others = evidence.metrics.checks
    failed = first.model_copy(update={"passed": False, "detail": "0.5, minimum 0.9 (gates.min_accuracy)"})
    refused = replace(with_metrics(evidence, checks=(failed, *others)), version=None)
    published, page = render(make_page(evidence, Album())), render(make_page(refused, Album()))
    assert '<div class="verdict published">' in published
    assert "<title>lenet5-digits: published</title>" in published
    assert '<div class="verdict refused">' in page
    assert "<title>lenet5-digits: refused</title>" in page
    assert "<b>test accuracy</b>: 0.5, minimum 0.9 (gates.min_accuracy)" in page


def test_labels_and_names_are_escaped(evidence: Evidence) -> None:
    """A label of the data is text, never a part of the page."""
    test = evidence.predictions["test"]
    labels = ('<script>alert("x")</script>', "a & b", *evidence.labels[2:])
    scores = score(np.asarray(test.probabilities), test.truth, labels)
    hostile = replace(
        with_metrics(evidence, test=scores),
        labels=labels,
        predictions={"test": replace(test, labels=labels, names=tuple(f"<{name}>" for name in test.names))},
    )
    page = render(make_page(hostile, Album()))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "a &amp; b" in page


class Reader(HTMLParser):
    """Collects what a page loads, and images without an alternative text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.images = 0
        self.silent: list[str] = []
        self.uses: list[str] = []
        self.symbols: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at one element."""
        found = dict(attrs)
        self.loaded += [found[key] or "" for key in ("src", "href", "srcset", "data") if found.get(key)]
        if tag == "img" or found.get("role") == "img":
            self.images += 1
            if not (found.get("alt") or found.get("aria-label")):
                self.silent.append(tag)
        if tag == "use" and (found.get("href") or "").startswith("#image-"):
            self.uses.append((found["href"] or "")[1:])
        if tag == "symbol":
            self.symbols.append(found["id"] or "")


def test_the_page_loads_nothing_and_every_image_has_an_alternative(evidence: Evidence) -> None:
    """Links are anchors or data; each image of the data is there once, and is used."""
    why = Section("why", "Why", (Picture("map", "A map of importance", PNG, "png", caption="red"),))
    page = render(make_page(evidence, Album(), why=(why,)))
    reader = Reader()
    reader.feed(page)
    assert all(link.startswith(("#", "data:")) for link in reader.loaded)
    assert "<script" not in page
    assert "@import" not in page
    assert reader.images > 100
    assert not reader.silent
    assert len(set(reader.symbols)) == len(reader.symbols)
    assert set(reader.uses) == set(reader.symbols)
    assert len(page) < 8_000_000
    order = [page.index(f'<section id="{key}">') for key in ("mistakes", "scores", "why", "made")]
    assert order == sorted(order)


def test_images_can_be_left_out(evidence: Evidence) -> None:
    """With report.images = none the page has the numbers, and no image of the data."""
    private = with_metrics(evidence, recipe={**evidence.metrics.recipe, "report.images": "none"})
    album = Album()
    page = render(make_page(private, album))
    assert not album.images
    assert "data:image" not in page
    assert "The recipe leaves images out of the report" in page
    assert "Right or wrong, sure or unsure" in page
