"""gRPC's own server."""
