"""How the network was made: curves, augmentation, the network, latency, data, a map, settings."""

import numpy as np

from training.networks import Network
from training.report.album import Album
from training.report.blocks import Block, Gallery, Photo, Row, Section, Table
from training.report.curves import draw_few_shot, draw_history
from training.report.data_findings import data_blocks
from training.report.embedding_map import draw_embedding_map
from training.report.evidence import Evidence
from training.report.latency import latency_table, measure_latency
from training.report.network_diagram import network_diagram
from training.report.settings import settings_blocks

_TIMED_IMAGES = 32


def made_section(evidence: Evidence, network: Network | None, album: Album) -> Section:
    """The section; what is not available is left out."""
    metrics = evidence.metrics
    blocks: list[Block] = []
    if evidence.history:
        blocks.append(
            draw_history(
                evidence.history, metrics.best_epoch, validation_chose=metrics.validation_chose_epoch
            )
        )
    if metrics.few_shot:
        blocks += draw_few_shot(metrics.few_shot)
    if evidence.examples is not None and evidence.shows_images:
        blocks.append(_augmentation(evidence, album))
    if network is not None:
        name = str(metrics.recipe.get("network.name", ""))
        blocks.append(network_diagram(name, network, evidence.geometry))
    if metrics.variants:
        blocks.append(
            Table(
                "INT8 and FP16 variants",
                ("precision", "result"),
                tuple((report.precision, report.summary_line()) for report in metrics.variants),
                frozenset({0, 1}),
            )
        )
    counts, *findings = data_blocks(metrics.data, evidence.shown, album)
    latency = _latency(evidence)
    blocks += [Row((counts, *latency)) if latency else counts, *findings]
    if evidence.test is not None and evidence.embedding is not None:
        drawn = draw_embedding_map(evidence.test, evidence.embedding)
        blocks += [drawn] if drawn else []
    blocks.append(
        Table(
            "Checks before publishing",
            ("", "check", "value and limit"),
            tuple(("✓" if each.passed else "✗", each.name, each.detail) for each in metrics.checks),
            frozenset({0, 1, 2}),
        )
    )
    blocks += settings_blocks(metrics.recipe)
    return Section("made", "How it was made", tuple(blocks))


def _latency(evidence: Evidence) -> list[Block]:
    if evidence.model_file is None:
        return []
    if evidence.dataset is not None and len(evidence.dataset.test):
        images = np.asarray(evidence.dataset.test.images[:_TIMED_IMAGES])
    else:
        images = np.zeros((1, *evidence.geometry.shape), np.uint8)
    return [latency_table(measure_latency(evidence.model_file, images), evidence.machine)]


def _augmentation(evidence: Evidence, album: Album) -> Gallery:
    """Each row is an image and its augmented versions."""
    examples = evidence.examples
    if examples is None:
        raise ValueError("no augmented examples. This is a bug.")
    photos = tuple(
        Photo(
            album.add_pixels(f"augmented-{row}-{column}", image),
            "training image as it is" if column == 0 else "the same image, augmented",
            ("original",) if column == 0 else (),
        )
        for row, images in enumerate(examples)
        for column, image in enumerate(images)
    )
    return Gallery(
        "Augmentation",
        photos,
        caption="Each row is one training image as it is, and as the network saw it in seven epochs.",
        size="small",
        columns=examples.shape[1],
        name="augmentation",
    )
