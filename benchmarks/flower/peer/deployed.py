"""The same as Flower has it deployed today: a ServerApp at a SuperLink and a ClientApp at every SuperNode."""

from __future__ import annotations

import time
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict  # type: ignore[import-not-found,unused-ignore]
from flwr.clientapp import ClientApp  # type: ignore[import-not-found,unused-ignore]
from flwr.serverapp import Grid, ServerApp  # type: ignore[import-not-found,unused-ignore]
from flwr.serverapp.strategy import FedAvg  # type: ignore[import-not-found,unused-ignore]
from peer import work  # type: ignore[import-not-found,unused-ignore]

server = ServerApp()
client = ClientApp()


@client.train()  # type: ignore[untyped-decorator,unused-ignore]
def train(message: Message, context: Context) -> Message:
    """Train one epoch."""
    given = message.content["arrays"].to_numpy_ndarrays()
    arrays, samples = work.train(int(context.node_config["index"]), given)
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": samples})})
    return Message(content=content, reply_to=message)


@server.main()  # type: ignore[untyped-decorator,unused-ignore]
def main(grid: Grid, context: Context) -> None:
    """Run all rounds, once all clients are there; a mark stands before the first and after each."""
    clients = int(context.run_config["clients"])
    while len(list(grid.get_node_ids())) < clients:
        time.sleep(0.1)

    def after_round(number: int, arrays: Any) -> None:  # noqa: ARG001
        work.mark({"what": "round", "number": number})

    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    first = ArrayRecord(work.initial_arrays())
    strategy.start(grid=grid, initial_arrays=first, num_rounds=work.ROUNDS, evaluate_fn=after_round)
