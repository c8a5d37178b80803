"""How many connections fit into the limit on open files."""

import resource
import subprocess
import sys

import pytest

from serving.transports.connection_accepting import RESERVED_DESCRIPTORS

_PROGRAM = """
import resource, sys
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from serving.transports.connection_accepting import fit_connections
print(fit_connections(wanted), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "fitting", "raised_to"),
    [
        (1024, 1024, 100, 100, 1024),
        (600, 1024, 500, 500, 500 + RESERVED_DESCRIPTORS),
        (600, 1024, 8192, 1024 - RESERVED_DESCRIPTORS, 1024),
        (300, 300, 8192, 150, 300),
    ],
    ids=["enough", "raised", "raised to the hard limit", "very few"],
)
def test_the_limit_on_open_files_is_raised_or_connections_are_limited(
    soft: int, hard: int, wanted: int, fitting: int, raised_to: int
) -> None:
    """In a process of its own: a hard limit cannot be raised again."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("this machine allows fewer open files")
    arguments = [str(each) for each in (soft, hard, wanted)]
    output = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=True
    ).stdout
    assert output.split() == [str(fitting), str(raised_to)]
