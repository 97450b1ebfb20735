"""Of each sender only so much waits for a node; what comes beyond that is dropped, and nobody else feels it."""

from hfl_mqtt.protocol.wire import Frame
from hfl_mqtt.roles.line import Line
from hfl_mqtt.transport.link import Arrived, Up


def said(sender: str, *, qos: int = 0, root: str = "hfl", channel: str = "stat/state") -> Arrived:
    return Arrived(frame=Frame(topic=f"{root}/f/{sender}/@/{channel}", payload=b"{}", qos=qos))


def test_a_sender_has_its_own_place_in_the_line_and_no_more() -> None:
    line = Line(most=2)
    assert [line.enter(said("cloud/a")) for _ in range(4)] == [True, True, False, False]
    assert line.enter(said("cloud/b"))


def test_who_has_left_the_line_makes_room() -> None:
    line = Line(most=1)
    assert line.enter(said("cloud/a"))
    assert not line.enter(said("cloud/a"))
    line.leave(said("cloud/a"))
    assert line.enter(said("cloud/a"))


def test_what_the_broker_keeps_back_and_parts_of_models_are_not_counted() -> None:
    line = Line(most=0)
    assert line.enter(Up(session_present=True))
    assert line.enter(said("cloud/a", qos=1, channel="tele/decline"))
    assert line.enter(said("cloud", root="hflb", channel="down/0"))
