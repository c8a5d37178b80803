"""torchvision imports beside any installed build of torch."""

import subprocess
import sys

import pytest

pytest.importorskip("torch")


@pytest.mark.parametrize("first", ["torchvision.datasets", "torchvision.models"])
def test_torchvision_imports_beside_any_torch_and_twice(first: str) -> None:
    """In a new process any module may be imported first, and another one after it."""
    program = (
        "from training.networks.torchvision_import import import_torchvision\n"
        f"import_torchvision({first!r})\n"
        "assert callable(import_torchvision('torchvision.datasets').MNIST)\n"
        "assert callable(import_torchvision('torchvision.models').get_model)\n"
        "assert callable(import_torchvision('torchvision.transforms.v2').Resize)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
