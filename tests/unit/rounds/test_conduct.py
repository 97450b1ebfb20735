"""Who floods or lies is not heard for a while, is told why, and is not waited for; honest nodes notice nothing."""

from math import inf
from typing import Any

from hfl_mqtt.protocol.limits import MAX_SHUNNED, PART_SIZE
from hfl_mqtt.protocol.messages import Moving, Plan, Quarantine, Quarantined, RoundCall, State, Tally
from hfl_mqtt.protocol.wire import encode
from hfl_mqtt.rounds.actions import Action, Persist, Send
from hfl_mqtt.rounds.aggregator import Aggregator
from hfl_mqtt.rounds.conduct import AMNESTY_S, KEY, NORMS_NEEDED, Bounds, Conduct
from hfl_mqtt.rounds.participant import Participant
from tests.unit.rounds.test_aggregator import (
    A,
    B,
    C,
    Cloud,
    announced,
    call_of,
    closed,
    many_parts,
    moved,
    nan_parts,
    receipts,
    small,
    wanted,
)
from tests.unit.rounds.trees import (
    MATH,
    PLAN,
    READY,
    info,
    keyframe,
    noted,
    notes,
    of,
    quick,
    said,
    update_parts,
    weights,
)

PI = "cloud/a/pi"
#: A pace at which a tenth message in a minute is too much.
SLOW = Bounds(messages_per_minute=9)


def flood(conduct: Conduct, name: str, count: int, *, size: int = 100, now: float = 0.0) -> list[str | None]:
    return [conduct.charge(name, size, now) for _ in range(count)]


# ------------------------------------------------------------------ pace


def test_a_message_too_many_in_a_minute_is_too_many_and_says_how_many_there_may_be() -> None:
    conduct = Conduct(SLOW)
    assert flood(conduct, PI, 10) == [None] * 9 + ["more than 9 messages in a minute"]
    assert conduct.charge("cloud/a/pj", 100, 0.0) is None, "each has its own"


def test_time_fills_an_allowance_up_but_not_beyond_a_minutes_worth() -> None:
    conduct = Conduct(Bounds(messages_per_minute=60))
    assert flood(conduct, PI, 60)[-1] is None
    assert flood(conduct, PI, 10, now=10.0)[-1] is None, "one a second"
    assert flood(conduct, PI, 1, now=10.0)[-1] is not None
    assert flood(conduct, PI, 60, now=1000.0)[-1] is None
    assert flood(conduct, PI, 1, now=1000.0)[-1] is not None


def test_rounds_of_milliseconds_are_no_flood() -> None:
    conduct = Conduct()
    for step in range(20_000):  # a hundred seconds of a hundred rounds each, with three messages that do not count
        conduct.called("r")
        assert flood(conduct, PI, 3, now=step * 0.005)[-1] is None


def test_a_hundred_megabytes_in_parts_that_all_come_twice_are_no_flood() -> None:
    conduct = Conduct()
    conduct.largest = 100_000_000
    for number in range(20):  # an update a second
        conduct.called("r")
        for _ in range(100_000_000 // PART_SIZE):
            assert conduct.charge(PI, PART_SIZE, float(number)) is None
            conduct.was_of_use(PI)
            assert conduct.charge(PI, PART_SIZE, float(number)) is None
        conduct.counted(PI, 1.0, 1)


def test_who_was_there_before_the_model_was_known_may_send_all_of_it_at_once() -> None:
    conduct = Conduct()
    assert conduct.charge(A, 100, 0.0) is None, "it joins"
    conduct.largest = 100_000_000
    conduct.called("r")
    parts = 100_000_000 // PART_SIZE + 1
    assert not any(conduct.charge(A, PART_SIZE + 150, 3.0 + part / 1000) for part in range(parts)), "in half a second"


def test_a_larger_model_gives_back_nothing_of_what_came_to_nothing_before() -> None:
    conduct = Conduct()
    conduct.largest = 1_000_000
    while conduct.charge(A, PART_SIZE, 0.0) is None:
        pass
    conduct.largest = 2_000_000
    came = 0
    while conduct.charge(A, PART_SIZE, 0.0) is None:
        came += PART_SIZE
    assert came <= 4 * 1_000_000, "four of what it is larger by"
    conduct.largest = 1_000_000
    assert conduct.charge(B, 1, 0.0) is None
    assert conduct.charge(A, PART_SIZE, 0.0) is not None


def test_a_day_of_a_link_that_comes_and_goes_is_no_flood() -> None:
    conduct = Conduct()
    for minute in range(24 * 60):  # twenty messages that were under way, and a greeting, each time
        assert flood(conduct, PI, 25, size=PART_SIZE, now=60.0 * minute)[-1] is None


def test_bytes_that_come_to_nothing_are_too_many_in_the_end() -> None:
    conduct = Conduct()
    conduct.largest = 1_000_000
    reasons = flood(conduct, PI, 100, size=PART_SIZE)
    first = next(at for at, reason in enumerate(reasons) if reason is not None)
    assert first == (16 * 2**20 + 4_000_000) // PART_SIZE
    assert reasons[first] == "more than 20.78 MB in a minute that came to nothing"


def test_after_our_own_absence_nobody_is_judged_by_its_pace() -> None:
    conduct = Conduct(SLOW)
    conduct.amnesty(100.0)
    assert flood(conduct, PI, 1000, now=100.0) == [None] * 1000
    assert flood(conduct, PI, 10, now=100.0 + AMNESTY_S)[-1] is not None


def test_a_hundred_messages_that_cannot_be_read_are_too_many_and_one_is_no_crime() -> None:
    conduct = Conduct()
    reasons = [conduct.charge_malformed(PI, "State is not JSON", 0.0) for _ in range(101)]
    assert reasons == [None] * 100 + ["too many malformed messages, the last: State is not JSON"]


# ------------------------------------------------------------------ lies


def test_five_lies_are_one_too_many_and_updates_that_count_take_them_back() -> None:
    conduct = Conduct()
    assert [conduct.strike(PI, float(at)) for at in range(5)] == [False, False, False, False, True]
    other = Conduct()
    for at in range(20):
        assert not other.strike(PI, float(at))
        other.counted(PI)


def test_norms_are_measured_by_what_the_others_sent() -> None:
    conduct = Conduct()
    for number in range(NORMS_NEEDED - 1):
        conduct.counted(f"cloud/{number}", 2.0, 10)
    conduct.counted(PI, 5000.0, 10)
    assert conduct.max_norm(PI, 10) == inf, "seven others are too few"
    conduct.counted("cloud/8", 2.0, 10)
    assert conduct.max_norm(PI, 10) == 20.0
    assert conduct.max_norm(PI, 1000) == 200.0, "a hundred times the samples go ten times as far"
    assert conduct.max_norm(PI, 10, staleness=2) == 60.0
    conduct.called("another run")
    assert conduct.max_norm(PI, 10) == inf


def test_two_others_tell_nothing_about_samples_and_three_do() -> None:
    conduct = Conduct()
    for name in "ab":
        conduct.counted(f"cloud/{name}", 2.0, 100)
    assert conduct.max_weight(PI) == 2**30
    conduct.counted("cloud/c", 2.0, 100)
    assert conduct.max_weight(PI) == 300_000
    conduct.called("another run")
    assert conduct.max_weight(PI) == 2**30


def test_a_device_with_a_thousand_times_the_others_data_is_believed_however_many_they_are() -> None:
    for others in ([90, 100, 110], [100, 20, 30], [30, 50, 70, 100, 100, 100, 130, 150, 170], [1, 2, 3]):
        conduct = Conduct()
        for number, samples in enumerate(others):
            conduct.counted(f"cloud/{number}", 2.0, samples)
        assert conduct.max_weight(PI) >= 1000 * max(others)


def test_where_few_have_little_and_few_have_much_data_each_is_believed() -> None:
    conduct = Conduct()
    for number, samples in enumerate([1, 1, 100_000]):
        conduct.counted(f"cloud/{number}", 2.0, samples)
    assert conduct.max_weight(PI) >= 100_000
    assert Conduct(Bounds(max_samples=500)).max_weight(PI) == 500


def test_by_a_median_of_many_one_liar_raises_what_is_believed_of_nobody() -> None:
    conduct = Conduct()
    for number in range(9):
        conduct.counted(f"cloud/{number}", 2.0, 100)
    conduct.counted("cloud/liar", 2.0, 2**30)
    assert conduct.max_weight(PI) == 300_000
    assert Conduct(Bounds(max_weight_ratio=inf)).max_weight(PI) == 2**30


# ------------------------------------------------------------------ quarantine


def test_a_quarantine_lasts_twice_as_long_each_time_up_to_an_hour() -> None:
    conduct, now, lasted = Conduct(), 0.0, []
    for _ in range(6):
        told = conduct.shun(PI, "a flood", now)
        lasted.append(told.for_s)
        assert conduct.is_shunned(PI)
        assert conduct.release(now + told.for_s - 1.0) == []
        now += told.for_s
        assert conduct.release(now) == [PI]
    assert lasted == [300.0, 600.0, 1200.0, 2400.0, 3600.0, 3600.0]
    assert conduct.shun(PI, "again", now + 25 * 3600.0).for_s == 300.0, "a day is long enough"


def test_a_quarantine_outlives_a_restart_with_its_full_length() -> None:
    conduct = Conduct()
    conduct.shun(PI, "a flood", 1000.0)
    (kept,) = conduct.flush()
    assert conduct.flush() == []
    again = Conduct(None, {KEY: kept.changes[KEY] or b""})
    again.start(5.0)
    assert again.is_shunned(PI)
    assert again.next_release_s == 305.0
    assert again.release(305.0) == [PI]
    assert again.flush() == [Persist(changes={KEY: None}, is_urgent=False)]
    assert again.shun(PI, "again", 306.0).for_s == 600.0, "nor is it forgotten that there was one"


def test_a_record_that_cannot_be_read_is_none() -> None:
    conduct = Conduct(None, {KEY: b"junk"})
    assert not conduct.is_shunned(PI)
    assert conduct.flush() == [Persist(changes={KEY: None}, is_urgent=False)]


def test_what_people_read_of_a_quarantine_is_one_line_of_ascii_and_never_too_long_for_a_message() -> None:
    conduct = Conduct()
    told = conduct.shun(PI, 'caf\u00e9\n{"event": "accepted"}', 0.0)
    assert told.reason == 'caf??{"event": "accepted"}'
    for number in range(MAX_SHUNNED + 5):
        conduct.shun("cloud/" + "x" * 60 + "/" + "y" * 60 + "/" + "z" * 60 + f"/{number}", '"' * 300, 0.0)
    shown = conduct.shown
    assert (len(shown.children), shown.more) == (MAX_SHUNNED, 6)
    assert len(encode(shown, "f", "cloud").payload) < 16_000


# ------------------------------------------------------------------ what an aggregator does


def said_to(actions: list[Action], child: str) -> list[Any]:
    return [action.message for action in of(actions, Send) if action.to == child]


def flooded(cloud: Aggregator, child: str, now: float = 1.0) -> list[Action]:
    """Have a child send what is too much, and return what comes of it."""
    for _ in range(10_000):
        actions = cloud.judge(child, 100, now)
        if actions:
            return actions
    raise AssertionError("nothing is too much")


def test_a_child_that_floods_is_told_shown_and_not_heard_and_the_round_does_not_wait_for_it() -> None:
    cloud = Cloud(A, B, C)
    call = cloud.begin(quorum=1.0, open_for_s=1000.0)
    cloud.get(call, A, 2.0, 1, 1.0)
    actions = flooded(cloud, C)
    reason = "more than 3000 messages in a minute"
    assert said_to(actions, C) == [Quarantine(reason=reason, for_s=300.0)]
    assert said(actions, Quarantined) == [Quarantined(children={C: reason})]
    assert noted(actions, "quarantined") == {"sender": C, "reason": reason, "for_s": 300.0}
    assert cloud.judge(C, 100, 2.0) == []
    assert closed(cloud.get(call, B, 4.0, 1, 3.0)), "the quorum is all of the other two"
    outcome = cloud.result()
    assert (outcome.accepted, outcome.missing, moved(outcome)) == ({A: 1, B: 1}, (), [3.0])


def test_a_child_in_quarantine_is_not_asked_and_comes_back_when_it_is_over() -> None:
    cloud = Cloud(A, B)
    flooded(cloud, B)
    assert (cloud.present, cloud.next_deadline) == ([A], 301.0)
    assert cloud.begin().asked == 1
    released = cloud.tick(301.0)
    assert notes(released)[0] == "released"
    assert said(released, Quarantined) == [Quarantined()]
    assert cloud.judge(B, 100, 302.0) is None
    assert notes(cloud.hear(READY, B, 302.0))[0] == "joined"


def test_what_a_child_gave_before_it_went_astray_still_counts() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=1.0)
    cloud.get(call, A, 2.0, 1, 1.0)
    assert not closed(flooded(cloud, A))
    assert closed(cloud.get(call, B, 4.0, 1, 2.0))
    assert cloud.result().accepted == {A: 1, B: 1}


def test_who_was_waited_for_alone_and_floods_ends_the_round() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=1.0)
    cloud.get(call, A, 2.0, 1, 1.0)
    assert closed(flooded(cloud, B))
    assert cloud.result().accepted == {A: 1}


def lie(cloud: Cloud, child: str, number: int) -> list[Action]:
    call = cloud.begin(number, codec="raw", quorum=1)
    (part,) = nan_parts(call)
    actions = cloud.hear(part, child, float(number))
    cloud.cancel("the next")
    return actions


def test_the_fifth_update_of_nan_is_refused_like_the_first_and_its_sender_is_not_heard_any_more() -> None:
    cloud = Cloud(A, B)
    for number in range(1, 5):
        assert "quarantined" not in notes(lie(cloud, A, number))
    actions = lie(cloud, A, 5)
    assert receipts(actions) == [(A, False, "'w' holds NaN or infinity")]
    assert noted(actions, "quarantined")["reason"] == (
        "5 updates that cannot be counted, the last: 'w' holds NaN or infinity"
    )
    assert cloud.present == [B]


def test_an_update_ten_times_as_far_as_the_others_go_is_refused() -> None:
    children = [f"cloud/n{number}" for number in range(9)]
    cloud = Cloud(*children)
    call = cloud.begin(quorum=9)
    for child in children[:8]:
        cloud.get(call, child, 0.5, 1, 1.0)
    ((_, accepted, reason),) = receipts(cloud.get(call, children[8], 5.1, 1, 2.0))
    assert not accepted
    assert reason == "norm: 5.1, while 5 is the most that is believed of a delta now"
    ((_, accepted, _),) = receipts(cloud.get(call, children[8], 4.9, 1, 3.0))
    assert accepted


def test_an_announcement_beyond_any_sense_is_a_lie_and_so_is_a_weight() -> None:
    cloud = Cloud(A, bounds=Bounds(strikes=1, max_samples=1000))
    call = cloud.begin(quorum=1)
    actions = cloud.get(call, A, 1.0, 1001, 1.0)
    ((_, accepted, reason),) = receipts(actions)
    assert (accepted, reason) == (False, "weight 1001: at most 1000 samples are believed of one child")
    assert "quarantined" in notes(actions)


def test_who_claims_all_the_samples_of_the_world_is_refused_where_others_are_known() -> None:
    cloud = Cloud(A, B, C, f"{A}2")
    call = cloud.begin(quorum=4)
    for child in (A, B, C):
        cloud.get(call, child, 0.5, 100, 1.0)
    ((_, accepted, reason),) = receipts(cloud.get(call, f"{A}2", 0.5, 2**30, 2.0))
    assert (accepted, reason) == (False, "weight 1073741824: at most 300000 samples are believed of one child")
    ((_, accepted, _),) = receipts(cloud.get(call, f"{A}2", 0.5, 100_000, 3.0))
    assert accepted


def test_an_edge_is_refused_what_its_devices_claim_and_has_no_strike_for_it() -> None:
    below = Plan(task="t", tiers=(quick(),))
    cloud = Cloud(A, bounds=Bounds(strikes=1, max_samples=1000))
    call = cloud.begin(quorum=1, plan=below)
    actions = cloud.get(call, A, 1.0, 1001, 1.0)
    assert [accepted for _, accepted, _ in receipts(actions)] == [False]
    assert "quarantined" not in notes(actions)


def test_an_edge_that_comes_back_from_an_outage_goes_as_many_rounds_at_once_as_it_was_told_to() -> None:
    children = [f"cloud/n{number}" for number in range(9)]
    cloud = Cloud(*children)
    call = cloud.begin(quorum=9, plan=Plan(task="t", tiers=(quick(rounds=2, offline_rounds=6),)))
    for child in children[:8]:
        cloud.get(call, child, 0.5, 1, 1.0)
    ((_, accepted, reason),) = receipts(cloud.get(call, children[8], 20.1, 1, 2.0))
    assert (accepted, reason) == (False, "norm: 20.1, while 20 is the most that is believed of a delta now")
    ((_, accepted, _),) = receipts(cloud.get(call, children[8], 19.9, 1, 3.0))
    assert accepted


def test_a_child_cannot_spend_the_budget_of_a_run_alone() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin()
    cloud.get(call, A, 1.0, 1, 1.0, sent=2**53, received=2**53)
    cloud.get(call, B, 1.0, 1, 1.0, sent=5000, received=7000)
    outcome = cloud.result()
    assert outcome.moved[B] == (5000, 7000)
    assert outcome.moved[A][0] == outcome.moved[A][1] < 10_000_000, "64 times the largest update and the model"


def test_one_tally_beyond_sense_is_left_out_where_two_others_know_better() -> None:
    cloud = Cloud(A, B, C)
    call = cloud.begin()
    for child, tally in (
        (A, Tally(total=1e300, count=1)),
        (B, Tally(total=70.0, count=100)),
        (C, Tally(total=0.0, count=100)),
    ):
        cloud.get(call, child, 1.0, 1, 1.0, tallies={"accuracy": tally})
    assert cloud.result().tallies == {"accuracy": Tally(total=70.0, count=200)}
    call = cloud.begin(2)
    for child, count in ((A, 2.0**53), (B, 100.0), (C, 200_000.0)):
        cloud.get(call, child, 1.0, 1, 1.0, tallies={"accuracy": Tally(total=count, count=count)})
    assert cloud.result().tallies == {"accuracy": Tally(total=200_100.0, count=200_100)}, "unequal, but not beyond"


def test_a_sum_over_nothing_or_below_nothing_is_no_way_around_that() -> None:
    for lie in (
        Tally(total=1e300, count=0),
        Tally(total=1e300, count=1e-300),
        Tally(total=-1e300, count=1, is_root=True),
    ):
        cloud = Cloud(A, B, C)
        call = cloud.begin()
        cloud.get(call, A, 1.0, 1, 1.0, tallies={"error": lie})
        for child in (B, C):
            one = Tally(total=1.0, count=1, is_root=lie.is_root)
            cloud.get(call, child, 1.0, 1, 1.0, tallies={"error": one})
        assert cloud.result().tallies["error"].value == 1.0


def test_a_child_that_says_for_ever_that_parts_come_at_it_holds_a_round_open_for_ten_minutes() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=2, open_for_s=60.0, retries=0)
    cloud.get(call, A, 1.0, 1, 1.0)
    now = 1.0
    while cloud.is_open and now < 10_000.0:
        now = min(cloud.next_deadline or inf, now + 10.0)
        cloud.hear(Moving(), B, now)
        cloud.tick(now)
    assert 60.0 + 600.0 <= now < 60.0 + 600.0 + 120.0
    assert cloud.result().is_missed


def test_an_edge_stops_saying_that_it_moves_when_its_own_round_is_not_put_off_any_more() -> None:
    cloud = Cloud(A)
    cloud.begin(quorum=1, open_for_s=60.0, retries=3)
    cloud.hear(Moving(), A, 59.0)
    cloud.tick(60.0)
    assert cloud.moving_since(61.0) is not None
    cloud.hear(Moving(), A, 680.0)
    assert cloud.moving_since(680.0) is None


def test_each_update_that_counts_gives_those_who_move_as_long_again() -> None:
    cloud = Cloud(A, B)
    call = cloud.begin(quorum=2, open_for_s=60.0, retries=0)
    now = 0.0
    while now < 600.0:
        now += 10.0
        cloud.hear(Moving(), B, now)
        cloud.tick(now)
    cloud.get(call, A, 1.0, 1, now)
    while now < 1150.0:
        now += 10.0
        cloud.hear(Moving(), B, now)
        cloud.tick(now)
    assert cloud.is_open


def test_one_who_sends_a_part_a_minute_does_not_keep_others_from_a_slot() -> None:
    cloud = small(A, B, C, open_for_s=10_000.0)
    call = call_of(cloud)
    parts = many_parts(call)  # of about 2000 bytes: there is no room for another of a thousand
    cloud.hear(parts[0], A, 0.0)
    cloud.hear(announced(call, B), B, 1.0)
    for at, part in ((30.0, parts[1]), (60.0, parts[2])):
        cloud.hear(part, A, at)
        assert wanted(cloud.tick(at)) == []
    assert B in wanted(cloud.tick(62.0)), "its turn has come"


def test_after_a_restart_a_child_in_quarantine_is_still_not_waited_for() -> None:
    disk: dict[str, Any] = {}

    def keep(actions: list[Action]) -> list[Action]:
        for persist in of(actions, Persist):
            disk.update(persist.changes)
        return actions

    cloud = Aggregator(path="cloud", arithmetic=MATH)
    keep(cloud.downlink.begin(keyframe(weights(1.0))))
    for child in (A, B):
        cloud.hear(READY, child, 0.0)
    opened = keep(cloud.open(run="r", round_id=(1,), plan=PLAN, tier=quick(quorum=1.0), seed=0, now=0.0))
    keep(flooded(cloud, B))
    again = Aggregator(path="cloud", arithmetic=MATH, saved={key: value for key, value in disk.items() if value})
    again.start(0.0)
    assert said(again.connected(session_present=False, now=0.0), Quarantined)
    assert again.judge(B, 100, 1.0) == []
    (part,) = update_parts(said(opened, RoundCall)[0], weights(2.0), 1)
    assert closed(again.hear(part, A, 1.0))


# ------------------------------------------------------------------ what the child does


def test_a_child_shows_why_it_is_not_heard_and_says_that_it_is_there_when_it_is_again() -> None:
    child = Participant(path=PI, boot=1, info=info(), max_model=10**6)
    child.connected(0.0)
    actions = child.hear(Quarantine(reason="more than 9 messages in a minute", for_s=300.0), 10.0)
    assert noted(actions, "in_quarantine") == {"reason": "more than 9 messages in a minute", "for_s": 300.0}
    shown: list[tuple[float, str]] = []
    while (now := child.next_deadline) is not None and now < 400.0:
        shown += [(now, state.reason) for state in said(child.tick(now), State)]
    reason = "in quarantine at cloud/a: more than 9 messages in a minute"
    assert (15.0, reason) in shown
    assert (312.0, "") in shown
