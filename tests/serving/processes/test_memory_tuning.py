"""Memory tuning, observed in a child process."""

import json
import subprocess
import sys

SCRIPT = """
import gc, json
from serving import server
from serving.processes.memory_tuning import settle_memory
before = gc.get_threshold()
settle_memory()
print(json.dumps([gc.get_freeze_count(), len(gc.get_objects()), before, gc.get_threshold()]))
"""


def test_imported_objects_are_never_collected() -> None:
    """Imported objects are frozen, and others are collected less often."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    frozen, searched, before, after = json.loads(done.stdout)
    assert frozen > 10_000
    assert searched < frozen / 100
    assert after[0] > before[0]
    assert after[2] > before[2]
