"""Keeps image decoders from writing to stderr: one hostile TIFF file can cause 50,000 lines there."""

import ctypes
import logging
import warnings
from pathlib import Path

import PIL


def silence_decoders() -> None:
    """Discard what Pillow and libtiff say about damaged files. Errors are still raised.

    libtiff writes to stderr directly. Pillow logs, and warns: Python keeps each different text for good.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
    # Pillow's wheels bring their own libtiff, which is loaded already: this finds that copy.
    for library in (Path(PIL.__file__).parents[1] / "pillow.libs").glob("libtiff*.so*"):
        libtiff = ctypes.CDLL(str(library))
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)
