"""torchvision, imported so that it works beside any build of torch."""

import importlib
import sys
from types import ModuleType

_libraries: list[object] = []  # a library's declarations last as long as it does


def import_torchvision(name: str) -> ModuleType:
    """Import a module of torchvision, also beside a CPU build of torch.

    The registry's torchvision is built for CUDA. Beside a CPU torch its compiled operators do not load, and
    its import ends in "operator torchvision::nms does not exist", because it registers fake kernels for
    two of them. Declaring the two schemas then is enough: no operator is ever called here. They must not be
    declared where the compiled operators do load: a second declaration aborts the process.

    Args:
        name: torchvision.models, say.
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
    import torch  # noqa: PLC0415 - who only reads files needs none

    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _libraries.append(library)
