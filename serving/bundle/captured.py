"""The folders that servers capture images into: their names, and how to tell them from labelled images.

Captured images lie in folders of what a network predicted: labels that training and measuring must not use.
"""

from pathlib import Path

PREDICTED = "predicted"
ANSWERS = "answers"


def why_not_labelled(root: Path) -> str:
    """Return why the directories in a directory are not labels of their images, and what to do; or "".

    Args:
        root: <capture>, <capture>/<model> or <capture>/<model>/predicted.
    """
    whole = root.absolute()
    try:
        inner = sorted(each for each in root.iterdir() if each.is_dir())
    except OSError:  # the one who reads the images says so
        inner = []
    above = (whole.parent,) if whole.name in (PREDICTED, ANSWERS) else ()
    model = next((each for each in (*above, root, *inner) if _is_captured(each)), None)
    if model is None:
        return ""
    return (
        f"{model / PREDICTED} has captured images in directories of what the network predicted, not of their "
        f"true classes. Move each image into a directory of its true class, such as "
        f"{model / 'labelled' / 'CLASS'}, and name {model / 'labelled'} instead of {root}"
    )


def _is_captured(model: Path) -> bool:
    return (model / PREDICTED).is_dir() and (model / ANSWERS).is_dir()
