"""The use case: images in, ranked labels out. Knows no gRPC."""
