"""The client role: one device or a thousand in a process, sharing one training process, there only while needed."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

from hfl_mqtt import __version__
from hfl_mqtt.config.models import ClientConfig, DeviceConfig
from hfl_mqtt.files import next_boot
from hfl_mqtt.learning import residuals
from hfl_mqtt.protocol.messages import Info, Metrics
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.roles import homes
from hfl_mqtt.roles.opening import Opened, opened
from hfl_mqtt.roles.process import Process, Record
from hfl_mqtt.roles.runner import Runner
from hfl_mqtt.roles.shell import MetricValues, Shell
from hfl_mqtt.roles.workshop import Workshop
from hfl_mqtt.rounds.actions import Note, Send, note
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.transport import descriptors

#: How often a board with vitals publishes them between rounds, unless told otherwise.
VITALS_EVERY_S = 60.0
#: So many of the devices of a process say it where the disk does not even let them begin.
MAX_SIGNS = 20


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
    descriptors.allow(len(config.devices))
    ready = opened(
        config.vault_path(),
        {device.name: config.state_path(device) for device in config.devices},
        config.federation,
        {device.name: config.account(device) for device in config.devices[:MAX_SIGNS]},
    )
    try:
        return _Clients(config, record, ready, hardware, vitals, vitals_every_s).process
    except BaseException:
        ready.vault.close()
        raise


class _Clients:
    """The clients of a process, and where each of them is now."""

    def __init__(
        self,
        config: ClientConfig,
        record: Record,
        ready: Opened,
        hardware: str | None,
        vitals: Callable[[], MetricValues] | None,
        vitals_every_s: float,
    ) -> None:
        self._config, self._ready, self._hardware = config, ready, hardware
        self._vitals_every_s = vitals_every_s if vitals is not None else None
        first = config.devices[0].name
        if ready.vault.damage:
            record(first, note("damaged", reason=ready.vault.damage))
        self._residual_of: dict[str, Path] = {}
        #: Those that have spoken under the boot that was raised at the start.
        self._begun: set[str] = set()
        self._workshop = Workshop(
            config.task.label,
            config.task.options,
            residual=self._residual_of.__getitem__,
            idle_s=config.idle,
            device=config.device,
            threads=config.threads or 1,
            on_log=lambda line: record(first, Note(event="trainer", fields={"line": line})),
        )
        here = config.at(homes.settle(ready.vault, config.home_names)) if config.homes else config
        ready.vault.forget_others({homes.BOARD, *(device.name for device in here.devices)})
        self.process = Process(
            record,
            workshop=self._workshop,
            vault=ready.vault,
            data={device.name: device.data for device in here.devices},
            until_finished=config.until_finished,
            extra=vitals,
            moved=self._move,
        )
        for device in here.devices:
            self.process.add(self._runner(here, device))

    def _move(self, old: str, new: str) -> None:
        """Go on at another home. The old place was left in its own last words; what was owed there is dropped."""
        self._workshop.forget(old)
        homes.settle(self._ready.vault, self._config.home_names)
        here = self._config.at(new)
        device = here.devices[0]
        self.process.replace(old, self._runner(here, device), device.data)

    def _runner(self, config: ClientConfig, device: DeviceConfig) -> Runner:
        state, known = config.state_path(device), self._ready.boots.get(device.name)
        self._residual_of[device.name] = residuals.path_of(state, device.name)
        boot = known if device.name not in self._begun and known is not None else next_boot(state, device.name)
        self._begun.add(device.name)
        info = Info(
            role="client",
            boot=boot,
            parent=parent(device.name),
            software=f"hfl-mqtt {__version__}, Python {platform.python_version()}",
            hardware=self._hardware or platform.machine(),
            task=config.task.label,
        )
        node = ClientNode(
            path=device.name,
            boot=boot,
            info=info,
            max_model=config.max_model,
            homes=self._config.home_names,
            saved=self._ready.vault.of(device.name),
        )
        return Runner(
            node,
            config.federation,
            config.account(device),
            self.process,
            keepalive_s=int(config.broker.keepalive),
            session_expiry_s=int(config.broker.session_expiry),
            housekeeping=_publish_vitals if self._vitals_every_s is not None else None,
            every_s=self._vitals_every_s or VITALS_EVERY_S,
        )


def _publish_vitals(shell: Shell) -> None:
    # Only once all earlier words have arrived: a week without a broker shall not pile up ten thousand old readings.
    if not shell.link.pending:
        shell.perform([Send(message=Metrics(values=dict(shell.last_metrics)))])
