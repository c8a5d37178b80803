"""The folders that servers capture images into: their names, and how to tell them from labelled images.

Captured images lie in folders of what a network predicted: labels that training and measuring must not use.
"""

from pathlib import Path

PREDICTED = "predicted"
ANSWERS = "answers"
NOT_LABELS_FILE = "not-labels.txt"  # in `predicted`, so that copies of it are recognized too
NOT_LABELS = """The folders beside this file are named after what a network predicted, not after the true
classes of their images. A network that is trained on them learns its mistakes: look at each image, and
move it into a folder of its true class elsewhere. Training refuses folders that have this file.
"""


def why_not_labelled(root: Path) -> str:
    """Return why the directories in a directory are not labels of their images, and what to do; or "".

    Args:
        root: <capture>, <capture>/<model>, <capture>/<model>/predicted, or a copy of one of them.
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
    if (copied := model / NOT_LABELS_FILE).is_file():
        return (
            f"{model} has captured images in directories of what the network predicted, not of their true "
            f"classes. Move each image into a directory of its true class, then delete {copied}"
        )
    return (
        f"{model / PREDICTED} has captured images in directories of what the network predicted, not of their "
        f"true classes. Move each image into a directory of its true class, such as "
        f"{model / 'labelled' / 'CLASS'}, and name {model / 'labelled'} instead of {root}"
    )


def _is_captured(model: Path) -> bool:
    is_model = (model / PREDICTED).is_dir() and (model / ANSWERS).is_dir()
    return is_model or (model / NOT_LABELS_FILE).is_file()
