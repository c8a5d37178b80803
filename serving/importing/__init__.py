"""Foreign models: any ONNX classifier becomes a proven bundle. Needs the package onnx, but not torch."""
