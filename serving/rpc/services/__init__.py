"""The services: decode a message, one call, encode a message."""
