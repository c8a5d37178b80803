"""The server: loads published bundles into ONNX Runtime and answers gRPC requests with ranked labels."""

__version__ = "0.1.0"  # pyproject.toml reads it from here
