from hypothesis import given
from hypothesis import strategies as st

from hfl_mqtt.protocol.messages import Draw
from hfl_mqtt.rounds import cohort

TEN = [f"cloud/pi-{number}" for number in range(10)]


def asked(drawn: Draw, round_id: tuple[int, ...], members: list[str]) -> set[str]:
    return {name for name in members if cohort.is_asked(drawn, round_id, name)}


def test_the_lot_of_a_node_is_fixed_for_ever() -> None:
    # int.from_bytes(sha256(b"7|12.3|cloud/a").digest()[:8], "big") >> 11
    assert cohort.lot(7, (12, 3), "cloud/a") == 4430407329586175


def test_everybody_is_asked_and_who_comes_later_too() -> None:
    drawn = cohort.draw(7, (1,), TEN, 1.0)
    assert asked(drawn, (1,), [*TEN, "cloud/late"]) == {*TEN, "cloud/late"}


def test_an_empty_house_asks_whoever_comes() -> None:
    assert cohort.is_asked(cohort.draw(7, (1,), [], 0.1), (1,), "cloud/late")


@given(st.integers(0, 2**53), st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]))
def test_a_fraction_asks_exactly_that_many(seed: int, fraction: float) -> None:
    assert len(asked(cohort.draw(seed, (1,), TEN, fraction), (1,), TEN)) == round(10 * fraction)


def test_seven_hundredths_of_a_hundred_are_seven() -> None:
    members = [f"cloud/{number}" for number in range(100)]
    assert len(asked(cohort.draw(1, (1,), members, 0.07), (1,), members)) == 7


def test_a_small_fraction_asks_one() -> None:
    assert len(asked(cohort.draw(7, (1,), TEN, 0.001), (1,), TEN)) == 1


def test_the_same_seed_asks_the_same_and_another_round_asks_others() -> None:
    first = asked(cohort.draw(7, (1,), TEN, 0.3), (1,), TEN)
    assert asked(cohort.draw(7, (1,), reversed(TEN), 0.3), (1,), TEN) == first
    assert asked(cohort.draw(7, (2,), TEN, 0.3), (2,), TEN) != first


def test_in_many_rounds_everybody_has_a_turn() -> None:
    turns = dict.fromkeys(TEN, 0)
    for number in range(1, 301):
        for name in asked(cohort.draw(7, (number,), TEN, 0.3), (number,), TEN):
            turns[name] += 1
    assert sum(turns.values()) == 900
    assert min(turns.values()) >= 60
