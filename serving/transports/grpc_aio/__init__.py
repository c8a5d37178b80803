"""The transport over grpc.aio, gRPC's reference server."""
