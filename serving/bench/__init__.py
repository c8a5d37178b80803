"""`lenserve bench`: measures a running server's throughput and latency at several loads, and finds its knee.

plan -> load (in worker processes) -> points -> knee, advice, table, picture. It calls the server over gRPC as
any client does, and imports no module of the server.
"""
