"""The machine that trains: its device and kernels, its memory, its processes."""
