"""The use case: images in, ranked labels out. Independent of gRPC."""
