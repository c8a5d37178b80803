"""The contract between training and serving: the files of a published version, and its preprocessing.

Independent of the server, the engine and training. Imports neither gRPC nor ONNX Runtime nor torch.
"""

from serving.bundle.aliases import AliasChange
from serving.bundle.geometry import apply_geometry, keeps_pixels
from serving.bundle.golden import Golden, read_golden, write_golden
from serving.bundle.images import ImageLimits, check_pixels, decode_image
from serving.bundle.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Calibration,
    Description,
    Estimate,
    Evaluation,
    Geometry,
    Imported,
    Manifest,
    Precision,
    Pretrained,
    Provenance,
    Reference,
    Variant,
    variant_file,
)
from serving.bundle.reference import reference_of
from serving.bundle.repository import STABLE_ALIAS, Bundle, Repository

__all__ = [
    "GOLDEN_FILE",
    "MANIFEST_FILE",
    "MODEL_FILE",
    "STABLE_ALIAS",
    "AliasChange",
    "Bundle",
    "Calibration",
    "Description",
    "Estimate",
    "Evaluation",
    "Geometry",
    "Golden",
    "ImageLimits",
    "Imported",
    "Manifest",
    "Precision",
    "Pretrained",
    "Provenance",
    "Reference",
    "Repository",
    "Variant",
    "apply_geometry",
    "check_pixels",
    "decode_image",
    "keeps_pixels",
    "read_golden",
    "reference_of",
    "variant_file",
    "write_golden",
]
