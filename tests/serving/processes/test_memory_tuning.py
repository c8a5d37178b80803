"""Memory tuning, observed in a child process."""

import json
import subprocess
import sys

SCRIPT = """
import gc, json
from serving import server
from serving.processes.memory_tuning import settle_memory
settle_memory()
print(json.dumps([gc.get_freeze_count(), len(gc.get_objects()), gc.isenabled()]))
"""


def test_imported_objects_are_never_collected() -> None:
    """Imported objects are frozen, and others are collected by `return_memory`."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    frozen, searched, is_automatic = json.loads(done.stdout)
    assert frozen > 10_000
    assert searched < frozen / 100
    assert not is_automatic
