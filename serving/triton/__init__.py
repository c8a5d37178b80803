"""Repositories that NVIDIA Triton can open too."""
