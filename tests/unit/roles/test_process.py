"""How a process of nodes ends, without a broker: also where a node cannot even leave in order."""

from __future__ import annotations

import threading

from hfl_mqtt.errors import HflError
from hfl_mqtt.ops.mosquitto import free_port
from hfl_mqtt.protocol.messages import Info, Metrics
from hfl_mqtt.roles.process import Process
from hfl_mqtt.roles.runner import Runner
from hfl_mqtt.roles.shell import MetricValues, Shell
from hfl_mqtt.rounds.actions import Note, Send
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.transport.link import Account

PATH = "cloud/farm-a/pi-1"


def publish(shell: Shell) -> None:
    shell.perform([Send(message=Metrics(values={"x": 1}))])


def unreadable() -> MetricValues:
    raise HflError("the sensor is gone")


def ignore(path: str, entry: Note) -> None:
    pass


def test_a_node_that_cannot_leave_in_order_still_ends_its_process() -> None:
    process = Process(ignore, extra=unreadable)
    node = ClientNode(path=PATH, boot=1, info=Info(role="client", boot=1))
    account = Account(host="127.0.0.1", port=free_port(), user=PATH)
    # Its figures are asked for every moment and once more when it leaves: both raise.
    process.add(Runner(node, "fed1", account, process, housekeeping=publish, every_s=0.01))
    raised: list[HflError] = []

    def hold() -> None:
        try:
            process.hold()
        except HflError as error:
            raised.append(error)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert [str(error) for error in raised] == ["the sensor is gone"]
