"""`python -m training` is `lenserve-train`, and what torchrun starts several times."""

import os
import sys

from training.cli import main

code = main()
if "WORLD_SIZE" in os.environ:
    # On busy cores gloo now and then aborts a process that is done, while C++ tears down what is left
    # ("terminate called without an active exception"); torchrun then ends the others. All is written by now.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
