"""The training machine: device, CUDA kernels, memory, and processes."""
