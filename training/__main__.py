"""`python -m training` is `lenserve-train`."""

import sys

from training.cli import main

sys.exit(main())
