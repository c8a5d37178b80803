"""An HTTP/2 server for ASGI applications (RFC 9113), in the event loop's thread."""

from serving.transports.http.http2.connection import Http2Connection

__all__ = ["Http2Connection"]
