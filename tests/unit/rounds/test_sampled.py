"""What a device says of the samples that it has gathered: at birth, and again where they are a tenth more or fewer."""

from __future__ import annotations

from hfl_mqtt.protocol.messages import Info
from hfl_mqtt.rounds.actions import Action, Connected, Sampled, Send
from hfl_mqtt.rounds.client import ClientNode


def node(samples: int | None = None) -> ClientNode:
    path = "cloud/farm-a/pi-1"
    return ClientNode(path=path, boot=1, info=Info(role="client", boot=1, parent="cloud/farm-a", samples=samples))


def said(actions: list[Action]) -> list[int | None]:
    return [
        action.message.samples for action in actions if isinstance(action, Send) and isinstance(action.message, Info)
    ]


def test_growth_of_a_tenth_is_said_and_less_is_not() -> None:
    one = node(samples=100)
    assert said(one.handle(Connected(), 0.0)) == [100]
    assert said(one.handle(Sampled(samples=110), 1.0)) == []
    assert said(one.handle(Sampled(samples=111), 2.0)) == [111]
    assert said(one.handle(Sampled(samples=115), 3.0)) == []
    assert said(one.handle(Sampled(samples=90), 4.0)) == [90]


def test_the_first_sample_is_news() -> None:
    one = node(samples=0)
    one.handle(Connected(), 0.0)
    assert said(one.handle(Sampled(samples=1), 1.0)) == [1]
    assert said(one.handle(Sampled(samples=1), 2.0)) == []


def test_what_is_gathered_before_the_link_is_up_is_said_at_birth() -> None:
    one = node()
    assert said(one.handle(Sampled(samples=40), 0.0)) == []
    assert said(one.handle(Connected(), 1.0)) == [40]
