"""`hfl run ...`: ask the cloud to pause, go on, stop or drain its run, and say what came of it; or how the run stands.

It is asked over its own broker, with its own account, and answers in what it retains: its state says at once what it
will do. Where it does not run, its state folder tells where the run stands.
"""

from __future__ import annotations

import json
import os
import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hfl_mqtt.config.models import CloudConfig, EdgeConfig
from hfl_mqtt.errors import BrokerError, HflError, Malformed
from hfl_mqtt.ops.serve import echo_line
from hfl_mqtt.protocol.messages import (
    Buffer,
    Control,
    Message,
    Metrics,
    Order,
    Phase,
    RoundCall,
    State,
    StateName,
    round_text,
)
from hfl_mqtt.protocol.topics import control_filters
from hfl_mqtt.protocol.wire import Frame, decode, encode
from hfl_mqtt.roles import runs
from hfl_mqtt.rounds.standing import KEY, Standing
from hfl_mqtt.state.vault import peek
from hfl_mqtt.transport.link import Arrived, Down, LinkEvent, Up
from hfl_mqtt.transport.mqtt import MqttLink

#: How long the broker, and the cloud, have to answer; and when nothing retained is expected any more.
ANSWER_S = 10.0
QUIET_S = 0.5
RESUME = "hfl run resume lets it go on"
_GONE = {StateName.LOST: "was lost", StateName.DISCONNECTED: "has ended"}


def steer(config: CloudConfig, order: Order, *, wait_s: float, as_json: bool, run: str = "") -> None:
    """Ask something of the cloud and wait for it, at most `wait_s` after the cloud has said what it will do.

    Args:
        config: the cloud's YAML.
        order: what to ask.
        wait_s: how long to wait for the effect; a round that is open is finished first, and may take long.
        as_json: print JSON rather than sentences.
        run: which run; any, where it is empty.

    Raises:
        BrokerError: no broker answers, or it refuses the account.
        HflError: no cloud answers, or it has no such run.
    """
    with Ear(config, config.name) as ear:
        ear.connect()
        said = ear.state
        if said is None:
            raise HflError(
                f"{config.name} has never been heard of at {ear.where} in {config.federation}: start it with hfl cloud"
            )
        if said.state in _GONE:
            raise HflError(f"{config.name} {_GONE[said.state]}: {_remedy(config)}")
        answer = ear.ask(Control(order=order, run=run))
        if answer.reason.startswith("no run "):
            raise HflError(f"{config.name} says: {answer.reason}")
        if answer.state is StateName.HALTED:
            raise HflError(f"{config.name} cannot go on: {answer.reason}")
        if not as_json:
            echo_line(f"{config.name}: {answer.reason or answer.state.value}")
        is_done = ear.until(lambda: _is_done(order, answer, ear), wait_s)
        if as_json:
            echo_line(json.dumps({"order": order.value, "is_done": is_done, **_status(config, ear)}))
        else:
            echo_line(_DONE[order] if is_done else f"not so yet after {wait_s:g} s: it will be, see hfl run status")


def status(config: CloudConfig, *, as_json: bool) -> int:
    """Print how the run stands: what the cloud has said, and where it does not run, what it has kept.

    Returns:
        The exit code: 0, or where nothing is kept either, 4 without a broker and 1 where the cloud was never heard of.
    """
    with Ear(config, config.name) as ear:
        try:
            ear.connect(is_patient=False)
        except BrokerError as error:
            found = {"broker": str(error), **_status(config, None)}
        else:
            found = _status(config, ear)
    if as_json:
        echo_line(json.dumps(found))
    else:
        for line in _lines(config, found):
            echo_line(line)
    if "state" in found or found["kept"] or "finished" in found:
        return 0
    return BrokerError.exit_code if "broker" in found else HflError.exit_code


def is_paused(kept: Mapping[str, Buffer], run: str) -> bool:
    """Whether somebody held this run back and nobody has let it go on, by what its cloud keeps."""
    standing = Standing.read(kept)
    # A pause holds nothing back any more once the run is being ended.
    return standing is not None and standing.run == run and standing.is_paused and standing.stopped is None


_DONE = {
    Order.PAUSE: f"paused: no round is open; {RESUME}",
    Order.RESUME: "the run goes on",
    Order.STOP: "stopped: the run is over, with the model it has",
    Order.DRAIN: "drained: the cloud has ended; start it again and the run goes on",
}


def _is_done(order: Order, answer: State, ear: Ear) -> bool:
    match order:
        case Order.PAUSE:
            is_open = ear.call is not None and ear.call.phase is Phase.OPEN
            return not is_open or (ear.state is not answer and ear.is_in(StateName.PAUSED))
        case Order.RESUME:
            return not ear.is_in(StateName.PAUSED)
        case Order.STOP:
            return ear.call is not None and ear.call.phase is Phase.FINISHED
        case Order.DRAIN:
            return ear.is_in(StateName.DISCONNECTED)


def _status(config: CloudConfig, ear: Ear | None) -> dict[str, Any]:
    """Return how the run stands, flat; what is not known is left out."""
    found: dict[str, Any] = {"cloud": config.name, "federation": config.federation}
    if ear is not None:
        if ear.state is not None:
            found |= {"state": ear.state.state.value, "reason": ear.state.reason}
        if ear.call is not None:
            found |= {"run": ear.call.run, "round": round_text(ear.call.round), "phase": ear.call.phase.value}
        found["metrics"] = ear.metrics
    if ear is None or ear.state is None or ear.state.state in _GONE:
        try:
            found["kept"] = _kept(config)
            done = runs.read_finished(peek(config.state_path(), config.name, runs.FINISHED))
            if done is not None:
                found["finished"] = {"run": done.run, "folder": done.folder}
        except (HflError, OSError) as error:
            found |= {"kept": {}, "unread": str(error)}
    return found


def _kept(config: CloudConfig) -> dict[str, Any]:
    """Return what the state folder tells of an unfinished run; nothing where there is none.

    Raises:
        HflError: there is no such folder, or it cannot be read.
        OSError: it may not even be looked for.
    """
    kept = peek(config.state_path(), config.name, runs.RUN, runs.SECONDS, KEY)
    run, standing = runs.read_run(kept), Standing.read(kept)
    if run is None:
        return {}
    found = {"run": run.id, "folder": run.folder, "lives": run.lives, "seconds": runs.read_seconds(kept)}
    if standing is not None and standing.run == run.id:
        found |= {"version": standing.version, "is_paused": is_paused(kept, run.id), "is_over": standing.is_over}
    return found


def _lines(config: CloudConfig, found: dict[str, Any]) -> list[str]:
    lines = []
    if "broker" in found:
        lines.append(found["broker"])
    state = found.get("state")
    if state is not None:
        said = f", {found['reason']}" if found["reason"] else ""
        lines.append(f"{config.name}: {state}{said}" + (f"; {RESUME}" if state == StateName.PAUSED.value else ""))
    elif "broker" not in found:
        lines.append(f"{config.name}: never heard of in {config.federation}; start it with hfl cloud")
    if "run" in found:
        lines.append(f"run {found['run']}: {found['round']} {found['phase']}")
    metrics = found.get("metrics") or {}
    if metrics:
        lines.append("  ".join(f"{name} {value}" for name, value in metrics.items() if value is not None))
    kept = found.get("kept")
    if kept:
        where = f"model version {kept['version']} of {config.rounds}" if "version" in kept else "before its first round"
        lines.append(f"unfinished run {kept['run']}: {where}, {kept['seconds']:g} s so far; {_start(kept)}")
    elif "unread" in found:
        lines.append(found["unread"])
    elif "finished" in found:
        lines.append(f"finished run {found['finished']['run']}: its result lies in {found['finished']['folder']}")
    elif kept is not None:
        lines.append(f"{config.state_path()}: no unfinished run is kept there")
    return lines


def _remedy(config: CloudConfig) -> str:
    try:
        return _start(_kept(config))
    except (HflError, OSError):
        return _start({})  # the folder may be on another machine


def _start(kept: Mapping[str, Any]) -> str:
    if not kept:
        return "start it with hfl cloud"
    if kept.get("is_paused"):
        return f"start it with hfl cloud; the run {kept['run']} is paused until hfl run resume is said to it then"
    return f"start it with hfl cloud, and the run {kept['run']} goes on"


@dataclass(slots=True)
class Ear:
    """Hears what a node says of itself, with the account of an aggregator: its own, or its child's."""

    config: CloudConfig | EdgeConfig
    path: str
    state: State | None = None
    call: RoundCall | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    _inbox: queue.SimpleQueue[LinkEvent] = field(default_factory=queue.SimpleQueue)
    _link: MqttLink | None = None

    def __enter__(self) -> Ear:
        config = self.config
        self._link = MqttLink(
            config.account(),
            control_filters(config.federation, self.path),
            self._inbox.put,
            client_id=f"{config.name}@run-{os.getpid()}",
            clean=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._link is not None:
            self._link.close()

    @property
    def where(self) -> str:
        """The broker, for people."""
        return f"{self.config.broker.host}:{self.config.broker.port}"

    def is_in(self, state: StateName) -> bool:
        """Whether that is the last state heard."""
        return self.state is not None and self.state.state is state

    def connect(self, *, is_patient: bool = True) -> None:
        """Connect, and take in what is retained; who is patient waits for a broker that is not there yet.

        Raises:
            BrokerError: there is no broker, or it refuses the account.
        """
        assert self._link is not None
        self._link.open()
        reason, deadline_s, is_up = "", time.monotonic() + ANSWER_S, False
        while not is_up:
            event = self._next(deadline_s)
            if event is None or (isinstance(event, Down) and (event.is_fatal or not is_patient)):
                reason = event.reason if isinstance(event, Down) else reason
                raise BrokerError(reason or f"no broker answers at {self.where}: start it, and check host and port")
            if isinstance(event, Down):
                reason = event.reason
            is_up = isinstance(event, Up)
        is_retained = True
        while is_retained and (event := self._next(time.monotonic() + QUIET_S)) is not None:
            is_retained = not isinstance(event, Arrived) or event.frame.retain  # what is said now comes after it
            self._take(event)

    def publish(self, frame: Frame) -> None:
        """Say something; it has left before the link is closed."""
        assert self._link is not None
        self._link.publish(frame)

    def ask(self, message: Message) -> State:
        """Ask, and return the state with which it answers."""
        before = self.state
        self.publish(encode(message, self.config.federation, self.path))
        if not self.until(lambda: self.state is not before, ANSWER_S):
            raise HflError(
                f"{self.path} does not answer within {ANSWER_S:g} s, though its state is "
                f"{before.state.value if before else 'unknown'}: look at its journal, and start it again"
            )
        assert self.state is not None
        return self.state

    def until(self, is_so: Callable[[], bool], wait_s: float) -> bool:
        """Listen until something is so; returns whether it is."""
        deadline_s = time.monotonic() + wait_s
        while not is_so():
            event = self._next(deadline_s)
            if event is None:
                return False
            self._take(event)
        return True

    def _next(self, deadline_s: float) -> LinkEvent | None:
        try:
            return self._inbox.get(timeout=max(deadline_s - time.monotonic(), 0.001))
        except queue.Empty:
            return None

    def _take(self, event: LinkEvent) -> None:
        if not isinstance(event, Arrived):
            return
        try:
            message, _ = decode(event.frame)
        except Malformed:
            return
        match message:
            case State():
                self.state = message
            case RoundCall():
                self.call = message
            case Metrics():
                self.metrics = dict(message.values)
            case _:
                pass
