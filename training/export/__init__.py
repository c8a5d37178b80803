"""ONNX export, INT8 and FP16 variants, and publishing."""
