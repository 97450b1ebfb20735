"""The edge role: one node on the farm's broker, aggregator below and participant above. It never loads torch."""

from __future__ import annotations

from hfl_mqtt import __version__
from hfl_mqtt.config.models import EdgeConfig
from hfl_mqtt.files import next_boot
from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.protocol.messages import Info
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.roles.process import Process, Record
from hfl_mqtt.roles.runner import Runner
from hfl_mqtt.rounds.edge import EdgeNode

#: Updates an aggregator lets the broker have outstanding with it.
RECEIVE_MAXIMUM = 20


def make(config: EdgeConfig, record: Record) -> Process:
    """Put the process of an edge together; `Process.hold` runs it.

    Raises:
        ConfigError: the password cannot be read.
        HflError: the state directory cannot be written.
    """
    boot = next_boot(config.state_path(), config.name)
    info = Info(role="edge", boot=boot, parent=parent(config.name), software=f"hfl-mqtt {__version__}")
    node = EdgeNode(path=config.name, boot=boot, info=info, arithmetic=TensorArithmetic(), max_model=config.max_model)
    process = Process(record, until_finished=config.until_finished)
    process.add(
        Runner(
            node,
            config.federation,
            config.account(),
            process,
            keepalive_s=int(config.broker.keepalive),
            session_expiry_s=int(config.broker.session_expiry),
            receive_maximum=RECEIVE_MAXIMUM,
        )
    )
    return process
