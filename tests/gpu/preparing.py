"""Decodes and resizes one JPEG again and again, and counts. Imports nothing heavy: many processes run it."""

import time
from concurrent.futures import ThreadPoolExecutor

from serving.bundle import Geometry, ImageLimits, apply_geometry, decode_image

_LIMITS = ImageLimits(max_bytes=16 * 2**20, max_pixels=50_000_000)


def prepared_per_s(encoded: bytes, geometry: Geometry, window_s: float, threads: int) -> float:
    """Images that so many threads of this process prepare a second."""

    def work(_: int) -> int:
        done = 0
        until_s = time.perf_counter() + window_s
        while time.perf_counter() < until_s:
            apply_geometry(decode_image(encoded, _LIMITS), geometry)
            done += 1
        return done

    began_s = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads))) / (time.perf_counter() - began_s)
