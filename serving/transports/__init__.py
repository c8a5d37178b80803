"""Transports: they serve RPCs over a network, and know no message."""
