"""gRPC, gRPC-Web and Connect over our HTTP server."""
