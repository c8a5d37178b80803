"""Imports torchvision with any build of torch, with or without CUDA."""

import importlib
import sys
from types import ModuleType

_libraries: list[object] = []  # holds the declarations, which end with it


def import_torchvision(name: str) -> ModuleType:
    """Import a module of torchvision, also with a CPU build of torch.

    PyPI's torchvision is built for CUDA. With a CPU build of torch, its compiled operators do not load, and
    the import fails with "operator torchvision::nms does not exist", because it registers fake kernels for
    two of them. Declaring their schemas is enough, because no operator is called here. If the compiled
    operators do load, declaring them again would abort the process.

    Args:
        name: module name, such as "torchvision.models".
    """
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    _declare_operators()
    for half_imported in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
        del sys.modules[half_imported]
    return importlib.import_module(name)


def _declare_operators() -> None:
    import torch  # noqa: PLC0415 - reading data files needs no torch

    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _libraries.append(library)
