"""Requests in HTTP/1.1 (RFC 9112): valid ones, and changes of lines and bytes."""

from random import Random

from tests.fuzz.mutations import blob, mutate, number

_LINES = [
    b"POST /echo HTTP/1.1",
    b"POST /parts HTTP/1.1",
    b"GET / HTTP/1.1",
    b"POST /echo HTTP/1.0",
    b"HEAD /x?y=z HTTP/1.1",
]
_FIELDS = [
    b"Host: here", b"Content-Type: application/json", b"Connection: close", b"Connection: keep-alive",
    b"Expect: 100-continue",
    b"Transfer-Encoding: chunked", b"Content-Length: 5", b"Content-Length: 6", b"Upgrade: h2c",
    b"X: " + b"y" * 300,
    b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Transfer-Encoding: gzip, chunked",
    b" folded: yes",
    b"Host:", b":empty", b"A B: c", b"\xc3\xa4: \xff", b"Cookie: a=b; c=d", b"Content-Length: 5, 5",
]  # fmt: skip


def make_http1(random: Random) -> bytes:
    """Return a few requests, one after the other, usually with changes."""
    sent = b"".join(_request(random) for _ in range(random.choice((1, 1, 1, 2, 3, 30))))
    choice = random.random()
    if choice < 0.4:
        return sent
    if choice < 0.42:
        return sent.replace(
            b"\r\n\r\n", b"\r\n" + b"x: y\r\n" * random.choice((100, 3000, 20_000)) + b"\r\n", 1
        )
    return mutate(random, sent, most=3)


def _request(random: Random) -> bytes:
    fields = [b"Host: here", *random.sample(_FIELDS, random.choice((0, 0, 1, 2)))]
    body = b""
    choice = random.random()
    if choice < 0.4:
        body = blob(random)
        fields.append(b"Content-Length: %d" % len(body))
    elif choice < 0.7:
        fields.append(b"Transfer-Encoding: chunked")
        body = b"".join(_chunk(random) for _ in range(random.randint(0, 3))) + random.choice(
            (b"0\r\n\r\n", b"0\r\na: b\r\n\r\n")
        )
    random.shuffle(fields)
    end = random.choice((b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n"))
    return end.join([random.choice(_LINES), *fields, b"", body])


def _chunk(random: Random) -> bytes:
    body = blob(random)
    size = b"%x" % (len(body) if random.random() < 0.95 else number(random))
    return size + random.choice((b"", b"", b"", b";a=b")) + b"\r\n" + body + b"\r\n"
