"""Runs a network in the process that owns the device. The images travel through shared memory."""
