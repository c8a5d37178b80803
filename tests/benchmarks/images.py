"""What decoding and resizing an image cost, beside Pillow doing both, and whether networks see a difference.

One thread, CPU time, both paths in turn in shuffled order; the ratio is the median of the pairs. With
--data-root, real photographs and X-rays go through both paths, and SqueezeNet judges the pixels.
"""

import argparse
import io
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits, load_sample_images

from serving.bundle import Geometry, apply_geometry, decode_image
from tests.benchmarks.image_agreement import (
    LIMITS,
    Agreement,
    by_pillow,
    by_us,
    folder_agreement,
    imagenet_agreement,
)
from tests.benchmarks.squeezenet import SqueezeNet

REPETITIONS = 15
WINDOW_S = 0.05
MOST_DIFFERENCE = 2  # levels; what is timed gives the same pixels

SQUARE = Geometry(height=224, width=224, channels=3)
CROP = Geometry(height=224, width=224, channels=3, fit="crop", crop_fraction=0.875)


@dataclass(frozen=True, slots=True)
class Cost:
    """One kind of image: CPU microseconds an image, medians."""

    file_bytes: int
    pillow_us: float
    ours_us: float
    decode_us: float
    geometry_us: float
    ratio: float
    ratio_range: tuple[float, float]  # the middle half of the pairs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, help="real images and weights, for the second table")
    parser.add_argument("--only", choices=["cost", "agreement"], help="one of the two tables")
    parser.add_argument("--match", default="", help="only images whose name in the first table contains this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.only == "agreement" and options.data_root is None:
        parser.error("agreement needs --data-root")
    torch.set_num_threads(1)
    costs: dict[str, Cost] = {}
    agreements: dict[str, Agreement] = {}
    if options.only != "agreement":
        costs = {name: cost(*case) for name, case in cases().items() if options.match in name}
    if options.only != "cost" and options.data_root is not None:
        agreements = judge(options.data_root)
    if options.json:
        tables: dict[str, Mapping[str, Cost | Agreement]] = {"cost": costs, "agreement": agreements}
        print(json.dumps({name: {k: asdict(v) for k, v in table.items()} for name, table in tables.items()}))
    else:
        show(costs, agreements)


def cases() -> dict[str, tuple[bytes, Geometry]]:
    """The images that are timed: a photograph in several guises, and a digit."""
    photograph = Image.fromarray(load_sample_images().images[0]).resize((500, 375))
    scan = load_digits().images[0].repeat(4, axis=0).repeat(4, axis=1)[:28, :28]  # (28, 28) 0..16
    digit = Image.fromarray((scan * 15.9).astype(np.uint8))
    jpeg = encode(photograph, "JPEG", quality=93)  # 76 KB
    small = Geometry(height=28, width=28, channels=1)
    return {
        "500x375 JPEG to 224x224": (jpeg, SQUARE),
        "500x375 JPEG, middle 7/8": (jpeg, CROP),
        "500x375 JPEG, bicubic": (jpeg, SQUARE.model_copy(update={"interpolation": "bicubic"})),
        "500x375 JPEG, progressive": (encode(photograph, "JPEG", quality=93, progressive=True), SQUARE),
        "500x375 JPEG, quality 75": (encode(photograph, "JPEG", quality=75), SQUARE),
        "500x375 PNG": (encode(photograph, "PNG"), SQUARE),
        "224x224 grey JPEG, middle 7/8": (encode(photograph.resize((224, 224)).convert("L"), "JPEG"), CROP),
        "4000x3000 JPEG to 224x224": (encode(photograph.resize((4000, 3000)), "JPEG", quality=85), SQUARE),
        "28x28 PNG as it is": (encode(digit, "PNG"), small),
        "28x28 PNG to 32x32": (encode(digit, "PNG"), Geometry(height=32, width=32, channels=1)),
    }


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    """A file by Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def cost(encoded: bytes, geometry: Geometry) -> Cost:
    """Compare the answers of both paths, then time them in turn."""
    pillow, ours = partial(by_pillow, encoded, geometry), partial(by_us, encoded, geometry)
    difference = np.abs(pillow().astype(int) - ours()).max()
    if difference > MOST_DIFFERENCE and geometry.interpolation == "bilinear":
        raise SystemExit(f"the paths differ by {difference} levels: nothing to compare")
    pixels = decode_image(encoded, LIMITS)
    stages: dict[str, Callable[[], object]] = {
        "pillow": pillow,
        "ours": ours,
        "decode": partial(decode_image, encoded, LIMITS),
        "geometry": partial(apply_geometry, pixels, geometry),
    }
    calls = {name: calls_in_a_window(stage) for name, stage in stages.items()}
    taken_us: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(REPETITIONS):
        for name in random.sample(list(stages), len(stages)):
            taken_us[name].append(cpu_s(stages[name], calls[name]) * 1e6)
    ratios = [our / their for our, their in zip(taken_us["ours"], taken_us["pillow"], strict=True)]
    quarter, _, three_quarters = statistics.quantiles(ratios, n=4)
    medians = {name: round(statistics.median(taken), 1) for name, taken in taken_us.items()}
    return Cost(
        file_bytes=len(encoded),
        pillow_us=medians["pillow"],
        ours_us=medians["ours"],
        decode_us=medians["decode"],
        geometry_us=medians["geometry"],
        ratio=round(statistics.median(ratios), 3),
        ratio_range=(round(quarter, 3), round(three_quarters, 3)),
    )


def calls_in_a_window(stage: Callable[[], object]) -> int:
    """How often a stage fits into WINDOW_S, at least once."""
    cpu_s(stage, 2)  # warm
    return max(1, int(WINDOW_S / max(cpu_s(stage, 2), 1e-6)))


def cpu_s(stage: Callable[[], object], calls: int) -> float:
    """CPU seconds of a call, of all threads: a library that uses several shall not look cheap."""
    started_s = time.process_time()
    for _ in range(calls):
        stage()
    return (time.process_time() - started_s) / calls


def judge(data_root: Path) -> dict[str, Agreement]:
    """Each set of real images through both paths."""
    network = SqueezeNet.pretrained(data_root)
    return {
        "imagenet-sample": imagenet_agreement(data_root, network),
        "chest_xray": folder_agreement(data_root / "chest_xray", network),
        "hymenoptera": folder_agreement(data_root / "hymenoptera", network),
    }


def show(costs: dict[str, Cost], agreements: dict[str, Agreement]) -> None:
    """Both tables, for people."""
    console = Console(width=120)
    if costs:
        headings = ["image", "KB", "Pillow", "ours", "decode", "geometry", "ratio"]
        table = Table(*headings, title="CPU microseconds an image")
        for name, row in costs.items():
            times = [f"{us:,.0f}" for us in (row.pillow_us, row.ours_us, row.decode_us, row.geometry_us)]
            ratio = f"{row.ratio:.2f} [{row.ratio_range[0]:.2f}-{row.ratio_range[1]:.2f}]"
            table.add_row(name, f"{row.file_bytes / 1e3:.1f}", *times, ratio)
        console.print(table)
    if agreements:
        headings = [
            "set",
            "images",
            "same decoding",
            "mean",
            "max",
            "same top-1",
            "right, Pillow",
            "right, ours",
        ]
        table = Table(*headings, title="Agreement with Pillow: levels, and counts of images")
        for name, each in agreements.items():
            table.add_row(name, *map(str, asdict(each).values()))
        console.print(table)


if __name__ == "__main__":
    main()
