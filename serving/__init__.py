"""The server: loads published bundles into ONNX Runtime and answers gRPC requests with ranked labels."""
