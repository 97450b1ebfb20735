"""No message from anyone, in any state, raises out of a node or stops it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfl_mqtt.learning.contracts import Weights
from hfl_mqtt.learning.start import of_weights
from hfl_mqtt.protocol.limits import MAX_WEIGHT
from hfl_mqtt.protocol.messages import (
    AUTO,
    Announce,
    Decline,
    Draw,
    Identity,
    KeyPart,
    Kind,
    Metrics,
    ModelPart,
    Moving,
    Phase,
    Plan,
    Receipt,
    RoundCall,
    State,
    StateName,
    Tally,
    Want,
    WantModel,
)
from hfl_mqtt.rounds.actions import (
    Action,
    Connected,
    Contribution,
    Event,
    Lost,
    Received,
    Work,
    Worked,
    WorkFailed,
)
from hfl_mqtt.rounds.client import ClientNode
from hfl_mqtt.rounds.cloud import CloudNode, Schedule
from hfl_mqtt.rounds.edge import EdgeNode
from hfl_mqtt.rounds.node import Node
from hfl_mqtt.rounds.signing import Signer, signed
from hfl_mqtt.sim.papers import Papers
from tests.unit.rounds.trees import (
    CODEC,
    MATH,
    PLAN,
    delta_parts,
    info,
    key_parts,
    of,
    offered,
    quick,
    said,
    update_parts,
    weights,
)

EDGE, PI, PJ = "cloud/a", "cloud/a/i", "cloud/a/j"
START = offered(weights(0.0))
STEPPED = offered(weights(0.0), weights(1.0))
#: Another chain, of a larger model.
OTHER = offered(weights(*range(50)), weights(*range(50)))
MODEL = START.manifest
PARTS: list[KeyPart | ModelPart] = [
    *key_parts(START),
    *delta_parts(STEPPED, 1),
    *key_parts(OTHER),
    *key_parts(OTHER, 100),
    *delta_parts(OTHER, 1, 50),
]
ROUNDS = [("r", (1,)), ("r", (1, 1)), ("s", (2, 1))]
DELTAS: list[Weights | bytes] = [weights(1.0), weights(1.0, 2.0), weights(3e38), b"", b"junk"]
#: What a child answers where nothing was called.
STRAY = RoundCall(
    run="r",
    round=(1,),
    phase=Phase.OPEN,
    asked=1,
    quorum=1,
    open_for_s=1.0,
    codec=CODEC,
    draw=Draw(),
    plan=PLAN,
    model=MODEL,
)

PAPERS = Papers(0)
#: Whose signatures some of what is said carries, right or wrong.
SIGNERS = [PAPERS.identity(path) for path in ("cloud", EDGE, PI)]

NODES: list[Callable[[Signer | None], Node]] = [
    lambda signer: ClientNode(path=EDGE, boot=1, info=info(), signer=signer),
    lambda signer: EdgeNode(path=EDGE, boot=1, info=info("edge"), arithmetic=MATH, signer=signer),
    lambda signer: CloudNode(
        path="cloud",
        boot=1,
        info=info("cloud"),
        arithmetic=MATH,
        schedule=Schedule(run="r", rounds=2, plan=PLAN, tier=quick(), is_scored=True),
        weights=weights(0.0),
        start=of_weights(weights(0.0)),
        signer=signer,
    ),
]


def introduced(make: Callable[[Signer | None], Node]) -> Node:
    """A node that signs, and has heard the cards of all."""
    path = make(None).path
    node = make(PAPERS.identity(path))
    for signer in SIGNERS:
        node.handle(Received(message=Identity(card=signer.card), sender=signer.path), 0.0)
    return node


tallies = st.dictionaries(
    st.sampled_from(["loss", "event", "version", "rmse"]),
    st.builds(Tally, total=st.floats(-1e300, 1e300), count=st.floats(0, 2**53), is_root=st.booleans()),
    max_size=3,
)
digests = st.sampled_from([*(part.blob for part in PARTS), "0" * 16])
indices = st.lists(st.integers(0, 5), max_size=64).map(tuple)
calls = st.builds(
    RoundCall,
    run=st.sampled_from(["r", "s"]),
    round=st.sampled_from([(1,), (2,), (1, 1), (1,) * 8]),
    phase=st.sampled_from(Phase),
    asked=st.just(1),
    quorum=st.just(1),
    open_for_s=st.just(1.0),
    codec=st.sampled_from([CODEC, "fp16", "nonsense", AUTO]),
    draw=st.sampled_from([Draw(), Draw(threshold=0)]),
    plan=st.builds(
        Plan,
        kind=st.sampled_from(Kind),
        task=st.just("t"),
        tiers=st.lists(
            st.builds(quick, rounds=st.integers(1, 2), downlink=st.sampled_from([CODEC, "int8", "nonsense", AUTO])),
            max_size=2,
        ).map(tuple),
    ),
    model=st.sampled_from([MODEL, STEPPED.manifest, OTHER.manifest, replace(OTHER.manifest, key=1)]),
    unasked=st.sampled_from([1, 2**20]),
    boot=st.integers(1, 2),
)
signed_calls = st.builds(signed, st.sampled_from(SIGNERS), calls)
others = st.one_of(
    st.builds(State, state=st.sampled_from(StateName), boot=st.integers(0, 2)),
    st.builds(Want, blob=digests, parts=indices),
    st.builds(WantModel, version=st.integers(0, 2), parts=indices, is_key=st.booleans()),
    st.builds(
        Announce,
        run=st.just("r"),
        round=st.sampled_from([(1,), (1, 1)]),
        base=st.sampled_from([MODEL.digest[:16], "0" * 16]),
        blob=digests,
        size=st.sampled_from([1, 1000, 2**30]),
        count=st.sampled_from([1, 3, 4096]),
    ),
    st.builds(
        Receipt,
        run=st.just("r"),
        round=st.sampled_from([(1,), (1, 1)]),
        base=st.sampled_from([MODEL.digest[:16], "0" * 16]),
        accepted=st.booleans(),
    ),
    st.builds(
        ModelPart,
        frame=st.integers(0, 2),
        version=st.integers(0, 3),
        blob=digests,
        index=st.integers(0, 3),
        count=st.integers(1, 4),
        size=st.integers(1, 9),
        data=st.binary(min_size=1, max_size=9),
    ),
    st.builds(
        KeyPart,
        version=st.integers(0, 2),
        blob=digests,
        index=st.integers(0, 3),
        count=st.integers(1, 4),
        size=st.integers(1, 9),
        data=st.binary(min_size=1, max_size=9),
    ),
    st.sampled_from(PARTS),
    st.sampled_from([info(), Metrics(values={}), Moving(), Identity(card="junk")]),
    st.sampled_from([Identity(card=signer.card) for signer in SIGNERS]),
)


@st.composite
def answers(draw: st.DrawFn, call: RoundCall) -> Any:
    """What a child may say to a call, right or wrong."""
    if draw(st.integers(0, 3)) == 0:
        run, round_id = draw(st.sampled_from([*ROUNDS, (call.run, call.round)]))
        return Decline(run=run, round=round_id, reason=draw(st.text(max_size=3)))
    parts = update_parts(
        call if call.codec != AUTO else replace(call, codec=CODEC),
        draw(st.sampled_from(DELTAS)),
        draw(st.sampled_from([0, 1, MAX_WEIGHT])),
        tallies=draw(tallies),
        part_size=draw(st.sampled_from([50, 1000])),
        signer=draw(st.sampled_from([None, *SIGNERS])),
    )
    return draw(st.sampled_from(parts))


def events(opened: RoundCall, works: list[Work]) -> st.SearchStrategy[Event]:
    """What may happen to a node that has called `opened` and asked for `works`."""
    messages = st.one_of(others, others, calls, signed_calls, answers(opened), answers(opened))
    senders = st.sampled_from(["cloud", "cloud", EDGE, PI, PJ, "stranger"])
    ids = st.sampled_from([work.work_id for work in works] or ["r/v0"])
    result = st.builds(Contribution, payload=st.sampled_from([b"", b"x"]), weight=st.integers(0, 1), tallies=tallies)
    links: list[Event] = [Lost(), Connected(), Connected(session_present=False)]
    received = st.builds(Received, message=messages, sender=senders)
    choices: list[st.SearchStrategy[Event]] = [received, received, received, st.sampled_from(links)]
    if works:
        choices += [
            st.builds(Worked, work_id=ids, result=result),
            st.builds(WorkFailed, work_id=ids, reason=st.just("")),
        ]
    return st.one_of(choices)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_whatever_is_said_a_node_neither_raises_nor_ticks_for_ever(data: st.DataObject) -> None:
    make = data.draw(st.sampled_from(NODES))
    node = introduced(make) if data.draw(st.booleans()) else make(None)
    now, opened = 100.0, STRAY
    works: list[Work] = []
    actions: list[Action] = [*node.start(now), *node.handle(Connected(), now)]
    for _ in range(data.draw(st.integers(1, 25))):
        opened = [opened, *(call for call in said(actions, RoundCall) if call.phase is Phase.OPEN)][-1]
        works += of(actions, Work)
        now += data.draw(st.sampled_from([0.0, 0.1, 3.0, 30.0, 1000.0, -50.0]))
        is_tick = data.draw(st.integers(0, 5)) == 0
        actions = node.tick(now) if is_tick else node.handle(data.draw(events(opened, works)), now)
    now = max(now, 0.0) + 1e5
    for _ in range(3000):
        deadline = node.next_deadline
        if deadline is None or deadline > now + 1e5:
            return
        before, now = now, max(now, deadline)
        node.tick(now)
        after = node.next_deadline
        assert after is None or after > before, "it would tick for ever at one moment"
