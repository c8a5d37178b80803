"""The gRPC services. Each method decodes a message, makes one call and encodes the result."""
