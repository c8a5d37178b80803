"""An HTTP/2 server of ASGI applications (RFC 9113) in the event loop itself: no thread stands between."""

from serving.transports.http.http2.connection import Connection

__all__ = ["Connection"]
