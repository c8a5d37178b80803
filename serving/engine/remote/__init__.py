"""Runs a network in the device server. The images travel through shared memory."""
