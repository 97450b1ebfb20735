"""Flower's gRPC server and clients of one process each: deprecated by it since 1.13, and its fastest way.

`python -m peer.legacy server PORT CLIENTS` and `python -m peer.legacy client PORT INDEX`.
"""

from __future__ import annotations

import sys
from typing import Any

from flwr.client import NumPyClient  # type: ignore[import-not-found,unused-ignore]
from flwr.common import ndarrays_to_parameters  # type: ignore[import-not-found,unused-ignore]
from flwr.compat.client.app import start_client  # type: ignore[import-not-found,unused-ignore]
from flwr.server import ServerConfig, start_server  # type: ignore[import-not-found,unused-ignore]
from flwr.server.strategy import FedAvg  # type: ignore[import-not-found,unused-ignore]
from peer import work  # type: ignore[import-not-found,unused-ignore]


class Client(NumPyClient):  # type: ignore[misc,unused-ignore]
    """A client that only trains."""

    def __init__(self, index: int) -> None:
        self._index = index

    def fit(self, parameters: Any, config: Any) -> tuple[Any, int, dict[str, Any]]:  # noqa: ARG002
        """Train one epoch."""
        arrays, samples = work.train(self._index, parameters)
        return arrays, samples, {}


def serve(port: int, clients: int) -> None:
    """Run all rounds; a mark stands before the first and after each."""

    def after_round(number: int, parameters: Any, config: Any) -> None:  # noqa: ARG001
        work.mark({"what": "round", "number": number})

    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=clients,
        min_available_clients=clients,
        initial_parameters=ndarrays_to_parameters(work.initial_arrays()),
        evaluate_fn=after_round,
    )
    start_server(server_address=f"127.0.0.1:{port}", config=ServerConfig(num_rounds=work.ROUNDS), strategy=strategy)


if __name__ == "__main__":
    role, port, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if role == "server":
        serve(port, number)
    else:
        start_client(server_address=f"127.0.0.1:{port}", client=Client(number).to_client(), insecure=True)
