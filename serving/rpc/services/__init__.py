"""The gRPC services. A method decodes a message, makes one call and encodes the result."""
