"""Foreign models: any ONNX classifier becomes a proven bundle. Needs the package onnx, but not torch."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # see serving/engine/__init__.py
