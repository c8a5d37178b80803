"""Near duplicates are found, and other pairs are not."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import near_duplicates
from training.data.near_duplicates import find_near_duplicates
from training.data.storage.disk_images import Images


def pictures(count: int, side: int = 64) -> np.ndarray:
    """Smooth random colour images, (count, side, side, 3)."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(c).resize((side, side), Image.Resampling.BICUBIC)) for c in coarse]
    )


def compressed(image: np.ndarray) -> np.ndarray:
    """Compress as a low-quality JPEG, and decode."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


def test_changed_copies_are_found_among_hundreds() -> None:
    """Compressed, brightened and shrunk copies pair with their originals; no other pairs are found."""
    originals = pictures(300)
    brighter = np.clip(originals[1].astype(int) + 15, 0, 255).astype(np.uint8)
    small = Image.fromarray(originals[2]).resize((32, 32)).resize((64, 64))
    copies = np.stack([compressed(originals[0]), brighter, np.asarray(small)])
    assert find_near_duplicates([originals, copies]) == [(0, 300), (1, 301), (2, 302)]


def test_equal_images_are_no_near_duplicates() -> None:
    """Equal images are reported as duplicates instead."""
    originals = pictures(3)
    assert find_near_duplicates([originals, originals]) == []


def test_plain_and_no_images_are_no_trouble() -> None:
    """Blank images, and no images at all."""
    assert find_near_duplicates([np.zeros((0, 8, 8, 1), np.uint8)]) == []
    plain = np.stack([np.full((8, 8, 1), shade, np.uint8) for shade in (10, 200)])
    assert find_near_duplicates([plain]) == []


def test_the_verdict_is_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are cached by content; other pixels or a damaged cache are searched again."""
    images = np.concatenate([pictures(5), compressed(pictures(1)[0])[None]])
    assert find_near_duplicates([images], tmp_path) == [(0, 5)]
    searched: list[int] = []
    search = near_duplicates._search

    def noted(some: Sequence[Images]) -> list[tuple[int, int]]:
        searched.append(len(some[0]))
        return search(some)

    monkeypatch.setattr(near_duplicates, "_search", noted)
    assert find_near_duplicates([images], tmp_path) == [(0, 5)]
    assert searched == []
    find_near_duplicates([images[:3]], tmp_path)
    next(tmp_path.glob("*.json")).write_text("{")
    for kept in tmp_path.glob("*.json"):
        kept.write_text("{")
    assert find_near_duplicates([images], tmp_path) == [(0, 5)]
    assert searched == [3, 6]
