"""The limits of the HTTP server in bytes, connections and seconds.

README.md says what happens beyond each.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the clients of one process. A check of each connection enforces those in time."""

    # Memory.
    max_pending_bytes: int = 256 * 2**20  # received and not yet answered: see byte_budget.py
    max_connections: int = 8192  # open, or in their TLS handshake

    # A client that sends nothing, or too slowly.
    tls_handshake_s: float = 10.0
    first_bytes_s: float = 10.0  # until the protocol is detected
    head_s: float = 10.0  # for a request head, a header block, or a frame, from its first byte on
    min_body_bytes_per_s: int = 1024  # while the application waits for more of a request
    body_window_s: float = 10.0  # the rate is measured over windows of this length
    keep_alive_s: float = 75.0  # HTTP/1.1: between two requests
    idle_timeout_s: float = 300.0  # HTTP/2: without open streams
    ping_after_s: float = 60.0  # HTTP/2: after this long without a byte, the server sends PING
    ping_timeout_s: float = 20.0

    # A client that does not read.
    unread_answer_s: float = 60.0
    min_answer_bytes_per_s: int = 1024  # added to unread_answer_s for the length of an answer
    closing_s: float = 5.0  # for the last bytes of a connection

    # Clients behind a load balancer find new servers when their connections end.
    max_connection_age_s: float = math.inf
    connection_age_jitter: float = 0.1  # each connection's age is changed by up to this share of it
    max_connection_age_grace_s: float = 30.0  # for running requests, after GOAWAY

    check_interval_s: float = 2.0


DEFAULT_LIMITS = Limits()
