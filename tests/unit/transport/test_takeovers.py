from hfl_mqtt.transport.takeovers import STEADY_S, UNSAID_S, WITHIN_S, Takeovers


def said(takeovers: Takeovers, *moments: float) -> list[float | None]:
    """Return the pauses after the broker has said at these moments that the session was taken over."""
    pauses = []
    for now in moments:
        assert takeovers.ended(now, lived_s=60.0, is_said=True, is_easy=False)
        pauses.append(takeovers.pause_s)
    return pauses


def test_from_the_third_takeover_in_ten_minutes_on_the_pauses_grow_to_ten_minutes() -> None:
    moments = [0.0, 100.0, 200.0, 205.0, 215.0, 235.0, 275.0, 355.0, 515.0, 835.0, 1435.0, 2035.0]
    assert said(Takeovers(), *moments) == [None, None, 5, 10, 20, 40, 80, 160, 320, 600, 600, 600]


def test_three_takeovers_in_more_than_ten_minutes_are_bad_luck() -> None:
    takeovers = Takeovers()
    assert said(takeovers, 0.0, 400.0, 601.0) == [None, None, None]
    assert not takeovers.is_cloned
    assert said(takeovers, 900.0) == [5]


def test_after_ten_quiet_minutes_it_is_alone_again_and_after_half_an_hour_where_the_pause_was_ten() -> None:
    takeovers = Takeovers()
    said(takeovers, 0.0, 1.0, 2.0)
    assert said(takeovers, 2.0 + WITHIN_S + 1) == [None]
    takeovers = Takeovers(pauses_s=(600.0, 600.0))
    said(takeovers, 0.0, 1.0, 2.0)
    assert said(takeovers, 1802.0) == [600]
    assert said(takeovers, 1802.0 + 1801.0) == [None]


def test_a_broker_that_only_hangs_up_is_understood_after_three_short_lives() -> None:
    takeovers = Takeovers()
    for now in (0.0, 5.0, 10.0):
        assert takeovers.ended(now, lived_s=STEADY_S / 2, is_said=False, is_easy=True)
    assert takeovers.pause_s == 5
    pauses = []
    for now in (30.0, 60.0, 120.0, 300.0, 500.0, 700.0):  # then each stands until the other is back
        takeovers.ended(now, lived_s=100.0, is_said=False, is_easy=True)
        pauses.append(takeovers.pause_s)
    assert pauses == [10, 20, 40, 80, UNSAID_S, UNSAID_S]


def test_a_network_that_breaks_is_no_takeover() -> None:
    takeovers = Takeovers()
    for now in range(10):
        assert not takeovers.ended(float(now), lived_s=1.0, is_said=False, is_easy=False)
        assert not takeovers.ended(float(now), lived_s=STEADY_S, is_said=False, is_easy=True)
    assert not takeovers.is_cloned
