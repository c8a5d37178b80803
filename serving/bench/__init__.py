"""`lenserve bench`: how much a running server takes, how long answers last then, and where its knee lies.

plan -> load (in worker processes) -> points -> knee, advice, table, picture. Asks a server over gRPC as any
client does; imports nothing of it.
"""
