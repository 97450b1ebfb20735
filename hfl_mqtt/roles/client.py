"""The client role: one device or a thousand in a process, sharing one training process, there only while needed."""

from __future__ import annotations

import platform
from collections.abc import Callable

from hfl_mqtt import __version__
from hfl_mqtt.config.models import ClientConfig, DeviceConfig
from hfl_mqtt.files import next_boot
from hfl_mqtt.learning import residuals
from hfl_mqtt.protocol.messages import Info, Metrics
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.roles.process import Process, Record
from hfl_mqtt.roles.runner import Runner
from hfl_mqtt.roles.shell import MetricValues, Shell
from hfl_mqtt.roles.workshop import Workshop
from hfl_mqtt.rounds.actions import Note, Send
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.transport import descriptors

#: How often a board with vitals publishes them between rounds, unless told otherwise.
VITALS_EVERY_S = 60.0


def make(
    config: ClientConfig,
    record: Record,
    *,
    hardware: str | None = None,
    vitals: Callable[[], MetricValues] | None = None,
    vitals_every_s: float = VITALS_EVERY_S,
) -> Process:
    """Put the process of one or several clients together; `Process.hold` runs it.

    Args:
        config: the client's YAML.
        record: takes every note, and what the training process prints.
        hardware: what the board says it is.
        vitals: further figures beside the metrics, also published between rounds.
        vitals_every_s: how often they are.

    Raises:
        ConfigError: a password cannot be read.
        ConfigError: so many clients need more open files than the system allows one process.
        HflError: the state directory cannot be written.
    """
    devices = config.devices
    descriptors.allow(len(devices))
    first = devices[0].name
    residual_of = {device.name: residuals.path_of(config.state_path(device), device.name) for device in devices}
    workshop = Workshop(
        config.task.label,
        config.task.options,
        residual=lambda path: residual_of[path],
        idle_s=config.idle,
        device=config.device,
        threads=config.threads or 1,
        on_log=lambda line: record(first, Note(event="trainer", fields={"line": line})),
    )
    process = Process(
        record,
        workshop=workshop,
        data={device.name: device.data for device in devices},
        until_finished=config.until_finished,
        extra=vitals,
    )
    for device in devices:
        runner = _runner(config, device, process, hardware, vitals_every_s if vitals is not None else None)
        process.add(runner)
    return process


def _runner(
    config: ClientConfig, device: DeviceConfig, process: Process, hardware: str | None, vitals_every_s: float | None
) -> Runner:
    boot = next_boot(config.state_path(device), device.name)
    info = Info(
        role="client",
        boot=boot,
        parent=parent(device.name),
        software=f"hfl-mqtt {__version__}, Python {platform.python_version()}",
        hardware=hardware or platform.machine(),
        task=config.task.label,
    )
    return Runner(
        ClientNode(path=device.name, boot=boot, info=info, max_model=config.max_model),
        config.federation,
        config.account(device),
        process,
        keepalive_s=int(config.broker.keepalive),
        session_expiry_s=int(config.broker.session_expiry),
        housekeeping=_publish_vitals if vitals_every_s is not None else None,
        every_s=vitals_every_s or VITALS_EVERY_S,
    )


def _publish_vitals(shell: Shell) -> None:
    # Only once all earlier words have arrived: a week without a broker shall not pile up ten thousand old readings.
    if not shell.link.pending:
        shell.perform([Send(message=Metrics(values=dict(shell.last_metrics)))])
