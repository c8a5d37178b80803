"""The training job: images in, a proven and published bundle out. Enters serving by its bundle alone."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # see serving/engine/__init__.py
