"""Compares the exported file with torch on every test image, at several batch sizes."""

from typing import Any

import numpy as np
import torch

from training.data.batches import inference_batches
from training.data.storage.device_images import DeviceImages
from training.data.storage.disk_images import Images
from training.evaluation.gates import Check, at_most
from training.evaluation.onnx_session import Floats, run
from training.export.export import Classifier

BATCH_SIZES = (1, 3, 7, 64)  # single images, odd sizes, and the usual largest batch


def check_parity(classifier: Classifier, session: Any, images: Images, max_gap: float) -> list[Check]:  # noqa: ANN401
    """Compare the outputs of ONNX Runtime with those of torch.

    Args:
        classifier: a classifier on the CPU, in evaluation mode.
        session: session of its exported file.
        images: (N, H, W, C) uint8.
        max_gap: maximum absolute difference of any probability, and of any embedding value relative to the
            largest one.

    Returns: three checks: equal labels, the gap of the probabilities, the gap of the embeddings.
    """
    with torch.no_grad():
        placed = DeviceImages(images, torch.device("cpu"))  # (N, H, W, C)
        outputs = [classifier(batch) for batch in inference_batches(placed)]
    expected = torch.cat([output[0] for output in outputs]).numpy()  # (N, K)
    expected_embedding = torch.cat([output[1] for output in outputs]).numpy()  # (N, D)
    scale = max(1.0, float(np.abs(expected_embedding).max()))
    differing, gap, embedding_gap = 0, 0.0, 0.0
    for batch_size in BATCH_SIZES:
        probabilities, embedding = run(session, images, batch_size)
        differing += _changed_labels(expected, probabilities, 2 * max_gap)
        gap = np.maximum(gap, np.abs(probabilities - expected).max())
        embedding_gap = np.maximum(embedding_gap, np.abs(embedding - expected_embedding).max() / scale)
    sizes = ", ".join(map(str, BATCH_SIZES))
    compared = len(images) * len(BATCH_SIZES)
    return [
        Check(
            name="same labels as torch",
            passed=differing == 0,
            detail=f"{compared - differing:,} of {compared:,}: {len(images):,} images at batch sizes {sizes} "
            f"(without ties within 2 x gates.max_parity_gap = {2 * max_gap:.2g})",
        ),
        at_most("largest probability gap to torch", float(gap), max_gap, "gates.max_parity_gap"),
        at_most(
            "largest relative embedding gap to torch", float(embedding_gap), max_gap, "gates.max_parity_gap"
        ),
    ]


def _changed_labels(expected: Floats, found: Floats, tie: float) -> int:
    """Count labels that differ, except near ties.

    Each of two probabilities may move by the allowed gap, so labels within twice that gap may swap.

    Args:
        expected: (N, K) from torch.
        found: (N, K) from ONNX Runtime.
        tie: maximum difference between two probabilities that counts as a tie.
    """
    rows = np.arange(len(expected))
    margin = expected.max(axis=1) - expected[rows, found.argmax(axis=1)]  # (N,), 0 if the labels are the same
    return int((margin > tie).sum())
