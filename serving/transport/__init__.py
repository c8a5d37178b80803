"""Thin: decode a message, one call, encode a message. One table of RPCs, and ways to serve it."""
