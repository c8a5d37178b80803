"""The server that a good tutorial ends in: grpcio, eight threads, one ONNX Runtime run a request.

    tutorial.py MODEL PORT

/tutorial.Classifier/Classify takes a BytesValue (raw uint8 pixels or a JPEG file, as the network wants) and
answers with a BytesValue: float32 probabilities.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf.wrappers_pb2 import BytesValue
from preparation import open_session, preparation


def main() -> None:
    """Serve until killed."""
    session = open_session(sys.argv[1])
    name, prepare = session.get_inputs()[0].name, preparation(session)

    def classify(request: BytesValue, _context: grpc.ServicerContext) -> BytesValue:
        (probabilities,) = session.run(["probabilities"], {name: prepare(request.value)[None]})  # (1, K)
        return BytesValue(value=probabilities.tobytes())

    decode, encode = BytesValue.FromString, BytesValue.SerializeToString
    method = grpc.unary_unary_rpc_method_handler(classify, decode, encode)
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("tutorial.Classifier", {"Classify": method})]
    )
    server.add_insecure_port(f"127.0.0.1:{sys.argv[2]}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
