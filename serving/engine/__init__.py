"""Loads a network and runs it on batches of images."""

import os

# ONNX Runtime since 1.29 reports to its maker: names and hashes of models, and an identifier that it keeps
# on disk. This turns all of it off, if it is set before the import (microsoft/onnxruntime#27379). Its own
# function is too late.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
