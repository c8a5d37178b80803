"""An HTTP server for HTTP/1.1 and HTTP/2."""
