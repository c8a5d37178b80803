"""Compares the exported file with torch on every test image, at several batch sizes."""

from typing import Any

import numpy as np
import torch

from training.data.batches import inference_batches
from training.data.storage.device_images import DeviceImages
from training.data.storage.disk_images import Images
from training.evaluation.gates import Check, at_most
from training.evaluation.onnx_session import run
from training.export.export import Classifier

BATCH_SIZES = (1, 3, 7, 64)  # single images, odd remainders, and the usual largest batch


def check_parity(classifier: Classifier, session: Any, images: Images, max_gap: float) -> list[Check]:  # noqa: ANN401
    """Compare the outputs of ONNX Runtime with those of torch.

    Args:
        classifier: on the CPU, in evaluation mode.
        session: of its exported file.
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
        differing += int((probabilities.argmax(axis=1) != expected.argmax(axis=1)).sum())
        gap = np.maximum(gap, np.abs(probabilities - expected).max())
        embedding_gap = np.maximum(embedding_gap, np.abs(embedding - expected_embedding).max() / scale)
    sizes = ", ".join(map(str, BATCH_SIZES))
    compared = len(images) * len(BATCH_SIZES)
    return [
        Check(
            name="same labels as torch",
            passed=differing == 0,
            detail=f"{compared - differing:,} of {compared:,}: {len(images):,} images at batch sizes {sizes}",
        ),
        at_most("largest probability gap to torch", float(gap), max_gap, "gates.max_parity_gap"),
        at_most(
            "largest relative embedding gap to torch", float(embedding_gap), max_gap, "gates.max_parity_gap"
        ),
    ]
