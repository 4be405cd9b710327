"""A gRPC server with the health service of grpcio: ``python -m tests.support.grpc_health PORT``.

Certificate and key may follow. Each line on stdin, ``SERVICE STATUS`` (``- STATUS`` for the server
as a whole), changes a status, and is answered by a line, as is the start. It ends when stdin does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def serve(port: str, *files: str) -> None:
    """Serve until stdin ends."""
    servicer = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(4))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if files:
        certificate, key = (Path(file).read_bytes() for file in files)
        credentials = grpc.ssl_server_credentials([(key, certificate)])
        server.add_secure_port(f"[::]:{port}", credentials)
    else:
        server.add_insecure_port(f"[::]:{port}")
    server.start()
    _answer()
    for line in sys.stdin:
        name, status = line.split()
        value = health_pb2.HealthCheckResponse.ServingStatus.Value(status)
        servicer.set("" if name == "-" else name, value)
        _answer()
    server.stop(None).wait()


def _answer() -> None:
    sys.stdout.write("done\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Read the command line."""
    serve(*arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
