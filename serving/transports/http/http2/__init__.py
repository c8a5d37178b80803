"""An HTTP/2 server of ASGI applications (RFC 9113), in the thread of the event loop."""

from serving.transports.http.http2.connection import Http2Connection

__all__ = ["Http2Connection"]
