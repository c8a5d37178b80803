"""The training machine: devices, CUDA kernels, memory, and processes."""
