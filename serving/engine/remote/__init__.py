"""Runs a network in the device server. Images and outputs travel through shared memory."""
