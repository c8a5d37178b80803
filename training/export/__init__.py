"""From a network to a published ONNX file and its variants."""
