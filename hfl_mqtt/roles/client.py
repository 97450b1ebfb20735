"""The client role: one device or a thousand in a process, sharing one training process, there only while needed."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hfl_mqtt import __version__
from hfl_mqtt.config.models import ClientConfig, DeviceConfig
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.files import next_boot
from hfl_mqtt.learning import residuals
from hfl_mqtt.learning.sources.source import SOURCE
from hfl_mqtt.protocol.messages import Info, Metrics
from hfl_mqtt.protocol.topics import parent
from hfl_mqtt.roles import homes, identities
from hfl_mqtt.roles.opening import Opened, opened
from hfl_mqtt.roles.process import Process, Record
from hfl_mqtt.roles.runner import Runner
from hfl_mqtt.roles.sensors import Sensors
from hfl_mqtt.roles.shell import MetricValues, Shell
from hfl_mqtt.roles.workshop import Workshop
from hfl_mqtt.rounds.actions import Note, Send, note
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.signing import Signer
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
    refusal: Callable[[], str | None] | None = None,
) -> Process:
    """Put the process of one or several clients together; `Process.hold` runs it.

    Args:
        config: the client's YAML.
        record: takes every note, and what the training process prints.
        hardware: what the board says it is.
        vitals: further figures beside the metrics, also published between rounds.
        vitals_every_s: how often they are.
        refusal: says why the board takes part in no round just now, by `may_train:`; asked whenever one opens.

    Raises:
        ConfigError: a password cannot be read, or an identity is of another node.
        ConfigError: the YAML has rules, and nobody is there to keep them.
        ConfigError: so many clients need more open files than the system allows one process.
        HflError: the state directory cannot be written.
    """
    if config.may_train is not None and refusal is None:
        raise ConfigError(
            "may_train is kept by the device agent, which knows the board: start it with python -m device_agents "
            "--config, or leave may_train out"
        )
    descriptors.allow(len(config.devices))
    signers = _signers(config)
    ready = opened(
        config.vault_path(),
        {device.name: config.state_path(device) for device in config.devices},
        config.federation,
        {device.name: config.account(device) for device in config.devices[:MAX_SIGNS]},
    )
    try:
        return _Clients(config, record, ready, signers, hardware, vitals, vitals_every_s, refusal).process
    except BaseException:
        ready.vault.close()
        raise


def _signers(config: ClientConfig) -> dict[str, Signer | None]:
    """Return the identity of each client, and of a board under each of its names: a wrong one is found at once."""
    names = config.home_names or tuple(device.name for device in config.devices)
    return {name: identities.load(config.at(name).identity, config.federation, name) for name in names}


class _Clients:
    """The clients of a process, and where each of them is now."""

    def __init__(
        self,
        config: ClientConfig,
        record: Record,
        ready: Opened,
        signers: Mapping[str, Signer | None],
        hardware: str | None,
        vitals: Callable[[], MetricValues] | None,
        vitals_every_s: float,
        refusal: Callable[[], str | None] | None,
    ) -> None:
        self._config, self._ready, self._hardware = config, ready, hardware
        self._signers = signers
        self._refusal = refusal
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
            priority=config.priority,
            on_log=lambda line: record(first, Note(event="trainer", fields={"line": line})),
        )
        here = config.at(homes.settle(ready.vault, config.home_names)) if config.homes else config
        self._sensors = Sensors(record, self._sampled)
        ready.vault.forget_others({homes.BOARD, *(device.name for device in here.devices)})
        self.process = Process(
            record,
            workshop=self._workshop,
            vault=ready.vault,
            data={device.name: self._gather(here, device) for device in here.devices},
            until_finished=config.until_finished,
            extra=vitals,
            moved=self._move,
            sensors=self._sensors,
        )
        for device in here.devices:
            self.process.add(self._runner(here, device))
        self._sensors.start()

    def _move(self, old: str, new: str) -> None:
        """Go on at another home. The old place was left in its own last words; what was owed there is dropped."""
        self._workshop.forget(old)
        self._sensors.remove(old)
        homes.settle(self._ready.vault, self._config.home_names)
        here = self._config.at(new)
        device = here.devices[0]
        data = self._gather(here, device)
        self.process.replace(old, self._runner(here, device), data)

    def _gather(self, config: ClientConfig, device: DeviceConfig) -> dict[str, Any]:
        """Begin to gather a device's data where it names a source, and return what the training process is told."""
        taken = config.taken_apart(device)
        if taken.source is None:
            return device.data
        source = taken.source.to_source(config.window_path(device))
        if source.kind == "mqtt":
            self._sensors.add(device.name, source, config.sensors_account(device, taken.source))
        else:
            self._sensors.watch(device.name, source)
        return {**taken.options, SOURCE: source.to_options()}

    def _sampled(self, path: str, samples: int) -> None:
        self.process.sampled(path, samples)

    def _refuse(self, path: str) -> str | None:
        """Return why a device takes part in no round just now."""
        reason = self._refusal() if self._refusal is not None else None
        return reason or self._sensors.lacks(path)

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
            samples=self._sensors.rows(device.name),
        )
        node = ClientNode(
            path=device.name,
            boot=boot,
            info=info,
            max_model=config.max_model,
            homes=self._config.home_names,
            saved=self._ready.vault.of(device.name),
            signer=self._signers[device.name],
        )
        node.participant.refusal = partial(self._refuse, device.name)
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
