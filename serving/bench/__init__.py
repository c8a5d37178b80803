"""`lenserve bench`: measures a running server's throughput and latency at several loads, and finds its knee.

plan -> load (in worker processes) -> points -> knee, advice, table, picture. It calls the server over gRPC
like any other client, and imports nothing from the server.
"""
