"""The kinds of pictures of `lenserve-train visualize`. Cheap to import."""

from typing import Literal

Kind = Literal[
    "images",
    "predictions",
    "quadrants",
    "mistakes",
    "breakdown",
    "confusion",
    "curves",
    "occlusion",
    "activations",
    "filters",
    "features",
    "kernels",
]
