"""Transports serve RPCs over a network. Independent of messages."""
