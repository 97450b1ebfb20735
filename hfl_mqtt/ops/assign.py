"""`hfl assign`: have a device go on at another of its homes, and say what came of it."""

from __future__ import annotations

import json

from hfl_mqtt.config.models import CloudConfig, EdgeConfig
from hfl_mqtt.errors import HflError
from hfl_mqtt.ops.serve import echo_line
from hfl_mqtt.ops.steering import Ear
from hfl_mqtt.protocol.messages import Assign, StateName
from hfl_mqtt.protocol.topics import is_child
from hfl_mqtt.protocol.wire import encode


def assign(config: CloudConfig | EdgeConfig, child: str, to: str, *, wait_s: float, as_json: bool) -> None:
    """Ask a device to move, and wait until it has gone; an answer under way is finished first.

    Args:
        config: the YAML of its parent, with whose account it is asked.
        child: the device's name.
        to: its name at the other home, one of the `homes` in its own YAML.
        wait_s: how long to wait until it has gone.
        as_json: print JSON rather than a sentence.

    Raises:
        BrokerError: no broker answers, or it refuses the account.
        HflError: it is no child of this parent, was never heard of, or does not go there.
    """
    if not is_child(child, config.name):
        raise HflError(f"{child} is no child of {config.name}: give the YAML of its parent")
    with Ear(config, child) as ear:
        ear.connect()
        said = ear.state
        if said is None:
            raise HflError(f"{child} has never been heard of at {ear.where} in {config.federation}: check its name")
        if not said.state.is_present:
            ear.publish(encode(Assign(to=to), config.federation, child))
            told = f"{child} is {said.state.value}: its broker keeps the word for it, and it moves when it is back"
            _print(child, to, told, is_done=False, as_json=as_json)
            return
        answer = ear.ask(Assign(to=to))
        if "homes" in answer.reason:
            raise HflError(f"{child} does not go there: {answer.reason}")
        is_done = ear.until(lambda: ear.is_in(StateName.DISCONNECTED), wait_s)
        told = f"{child} {ear.state.reason if ear.state else ''}"
        if not is_done:
            told = f"{child} has not gone after {wait_s:g} s: it finishes what it does, and goes then"
        _print(child, to, told, is_done=is_done, as_json=as_json)


def _print(child: str, to: str, told: str, *, is_done: bool, as_json: bool) -> None:
    echo_line(json.dumps({"child": child, "to": to, "is_done": is_done, "told": told}) if as_json else told)
