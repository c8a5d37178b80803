"""torchvision imports beside the torch that is installed, whichever build it is."""

import subprocess
import sys

import pytest

pytest.importorskip("torch")


@pytest.mark.parametrize("first", ["torchvision.datasets", "torchvision.models"])
def test_torchvision_imports_beside_any_torch_and_twice(first: str) -> None:
    """In a fresh process any of its modules may come first, and the next one finds all in place."""
    program = (
        "from training.networks.torchvision_import import import_torchvision\n"
        f"import_torchvision({first!r})\n"
        "assert callable(import_torchvision('torchvision.datasets').MNIST)\n"
        "assert callable(import_torchvision('torchvision.models').get_model)\n"
        "assert callable(import_torchvision('torchvision.transforms.v2').Resize)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
