import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol import blobs
from hfl_mqtt.protocol.blobs import Ask, Cut, Full, Progress, Reassembler
from hfl_mqtt.protocol.messages import MAX_BLOB, ModelPart

TEN = bytes(range(10))


def part(cut: Cut, index: int) -> ModelPart:
    return ModelPart(blob=cut.digest, index=index, count=cut.count, size=len(cut.blob), data=cut.part(index))


def roomy(window: int | None = 4, **options: float) -> Reassembler:
    return Reassembler(max_blob=1000, max_total=1000, window=window, **options)  # type: ignore[arg-type]


def test_a_blob_is_cut_into_even_parts() -> None:
    cut = Cut.of(TEN, part_size=4)
    assert [cut.part(index) for index in range(cut.count)] == [TEN[:4], TEN[4:8], TEN[8:]]


def test_a_blob_of_one_part_is_that_part() -> None:
    cut = Cut.of(TEN, part_size=10)
    assert (cut.count, cut.part(0)) == (1, TEN)


@given(st.integers(1, 300), st.integers(1, 40))
def test_every_part_of_every_cut_has_the_length_that_is_checked(size: int, part_size: int) -> None:
    cut = Cut.of(bytes(size), part_size)
    box = Reassembler(max_blob=1000, max_total=1000, window=None)
    assert [box.add("c", part(cut, index), 0.0).blob for index in range(cut.count)][-1] == cut.blob


def test_nothing_and_too_much_cannot_be_cut() -> None:
    for size in (0, MAX_BLOB + 1):
        with pytest.raises(ValueError, match="a blob has"):
            Cut.of(bytes(size))


def test_parts_in_any_order_give_the_blob() -> None:
    cut, box = Cut.of(TEN, 3), roomy()
    assert [box.add("c", part(cut, index), 0.0).blob for index in (3, 0, 2, 1)] == [None, None, None, TEN]
    assert len(box) == 0


def test_a_blob_that_is_complete_begins_anew_when_it_comes_again() -> None:
    cut, box = Cut.of(TEN, 10), roomy()
    assert box.add("c", part(cut, 0), 0.0).blob == TEN
    assert box.add("c", part(cut, 0), 1.0).blob == TEN


def test_two_senders_may_send_the_same_blob() -> None:
    cut, box = Cut.of(TEN, 5), roomy()
    assert box.add("c", part(cut, 0), 0.0).blob is None
    assert box.add("d", part(cut, 1), 0.0).blob is None
    assert box.add("c", part(cut, 1), 0.0).blob == TEN


# ------------------------------------------------------------------ flow


def test_the_receiver_tops_up_when_half_of_the_window_has_come() -> None:
    cut, box = Cut.of(TEN, 1), roomy(window=4)
    asks = [box.add("c", part(cut, index), 0.0).ask for index in range(4)]
    # 0 to 3 come unasked; with 2 and 3 still under way, two more are asked for, and again after two of the four.
    assert asks == [(), (4, 5), (), (6, 7)]


def test_where_everything_is_sent_nothing_is_topped_up() -> None:
    cut, box = Cut.of(TEN, 1), roomy(window=None)
    assert [box.add("c", part(cut, index), 0.0).ask for index in range(9)] == [()] * 9


def test_after_silence_the_missing_parts_are_asked_for_with_growing_patience() -> None:
    cut, box = Cut.of(TEN, 5), roomy(stall_s=5.0)
    box.add("c", part(cut, 1), 100.0)
    asked_at = []
    now = 100.0
    while len(box):
        now = box.next_deadline or 0.0
        if box.tick(now) == [Ask("c", cut.digest, (0,))]:
            asked_at.append(now - 100.0)
    assert asked_at[:6] == [5.0, 15.0, 35.0, 75.0, 135.0, 195.0]
    assert now - 100.0 >= 600.0
    assert box.next_deadline is None


def test_progress_makes_it_patient_for_as_long_as_at_first() -> None:
    cut, box = Cut.of(TEN, 3), roomy(stall_s=5.0)
    box.add("c", part(cut, 0), 0.0)
    assert box.tick(5.0)
    assert box.next_deadline == 15.0
    box.add("c", part(cut, 1), 6.0)
    assert box.next_deadline == 18.0  # it took 6 s, so twice that


def test_a_duplicate_after_silence_is_a_probe_and_answered_with_what_is_missing() -> None:
    cut, box = Cut.of(TEN, 5), roomy(stall_s=5.0)
    box.add("c", part(cut, 0), 0.0)
    assert box.add("c", part(cut, 0), 5.0) == Progress(ask=(1,), is_new=False)


def test_a_duplicate_among_other_parts_is_not_answered() -> None:
    cut, box = Cut.of(TEN, 5), roomy(stall_s=5.0)
    box.add("c", part(cut, 0), 0.0)
    assert box.add("c", part(cut, 0), 4.9) == Progress(is_new=False)
    # It shows that the link is alive: what was asked for may stand in line behind it.
    assert box.next_deadline == 4.9 + 2 * 4.9


def test_probes_never_put_off_for_ever_what_is_missing() -> None:
    cut, box = Cut.of(TEN, 5), roomy(stall_s=5.0)
    box.add("c", part(cut, 0), 0.0)
    asked = 0
    for minute in range(1, 9):
        asked += len(box.add("c", part(cut, 0), minute * 60.0).ask)
    assert asked == 8


def test_before_the_speed_of_the_link_is_known_few_parts_are_asked_for() -> None:
    cut, box = Cut.of(TEN, 1), roomy(window=None, stall_s=5.0)
    box.add("c", part(cut, 0), 0.0)
    assert box.tick(5.0) == [Ask("c", cut.digest, (1, 2, 3, 4))]
    box.add("c", part(cut, 1), 6.0)
    assert box.tick(60.0) == [Ask("c", cut.digest, (2, 3, 4, 5, 6, 7, 8, 9))]


def test_at_most_64_parts_are_asked_for_at_once() -> None:
    cut, box = Cut.of(bytes(500), 1), roomy(window=None)
    box.add("c", part(cut, 0), 0.0)
    box.add("c", part(cut, 1), 0.0)
    assert [len(ask.parts) for ask in box.tick(60.0)] == [64]
    assert len(box.missing("c", cut.digest)) == 64


def test_it_says_what_is_open_and_what_it_lacks() -> None:
    cut, box = Cut.of(TEN, 3), roomy()
    assert (box.is_open("c", cut.digest), box.missing("c", cut.digest)) == (False, ())
    box.add("c", part(cut, 1), 0.0)
    assert (box.is_open("c", cut.digest), box.missing("c", cut.digest)) == (True, (0, 2, 3))
    box.clear()
    assert (box.is_open("c", cut.digest), box.next_deadline) == (False, None)


def test_it_knows_whether_anything_is_on_its_way() -> None:
    cut, box = Cut.of(TEN, 3), roomy(stall_s=5.0)
    assert not box.is_arriving(0.0, 15.0)
    box.add("c", part(cut, 1), 100.0)
    assert box.is_arriving(115.0, 15.0)
    assert not box.is_arriving(115.1, 15.0)
    box.add("c", part(cut, 2), 120.0)
    assert box.is_arriving(160.0, 15.0), "20 s a part is a slow link, not a dead one"
    assert not box.is_arriving(160.1, 15.0)


def test_duplicates_alone_keep_nothing_alive_for_ever() -> None:
    cut, box = Cut.of(TEN, 3), roomy(expire_s=600.0)
    for now in range(0, 590, 10):
        box.add("c", part(cut, 1), float(now))
    box.tick(600.0)
    assert not box.is_arriving(600.0, 15.0)


# ------------------------------------------------------------------ bounds


@pytest.mark.parametrize(
    ("index", "count", "size", "length"),
    [
        (2, 2, 10, 5),  # beyond the last
        (0, 2, 10, 4),  # too short
        (0, 2, 10, 6),  # too long
        (1, 2, 9, 5),  # the last one is shorter
        (3, 4, 5, 1),  # 2 + 2 + 1 leaves nothing for it
        (0, 4, 5, 2),  # so the whole would never be whole
    ],
)
def test_a_part_that_contradicts_itself_is_refused_and_not_kept(index: int, count: int, size: int, length: int) -> None:
    box = roomy()
    with pytest.raises(Malformed, match=r"part \d of \d has"):
        box.add("c", ModelPart(blob="0" * 64, index=index, count=count, size=size, data=bytes(length)), 0.0)
    assert len(box) == 0


def test_two_parts_that_disagree_are_refused() -> None:
    box = roomy()
    box.add("c", ModelPart(blob="0" * 64, index=0, count=2, size=10, data=bytes(5)), 0.0)
    with pytest.raises(Malformed, match="disagree"):
        box.add("c", ModelPart(blob="0" * 64, index=1, count=5, size=10, data=bytes(2)), 0.0)


def test_a_blob_that_does_not_hash_to_its_name_is_forgotten() -> None:
    box = roomy()
    with pytest.raises(Malformed, match="does not hash"):
        box.add("c", ModelPart(blob="0" * 64, index=0, count=1, size=1, data=b"x"), 0.0)
    assert len(box) == 0


def test_a_blob_larger_than_makes_sense_is_refused_by_its_first_part() -> None:
    cut = Cut.of(bytes(101), 50)
    with pytest.raises(Malformed, match="101 bytes, at most 100"):
        Reassembler(max_blob=100, max_total=1000).add("c", part(cut, 0), 0.0)


def test_new_blobs_wait_while_too_much_is_under_way_and_open_ones_go_on() -> None:
    first, second = Cut.of(bytes(60), 30), Cut.of(bytes(50), 25)
    box = Reassembler(max_blob=100, max_total=100)
    box.add("c", part(first, 0), 0.0)
    with pytest.raises(Full, match="60 bytes of 100"):
        box.add("d", part(second, 0), 0.0)
    assert box.add("c", part(first, 1), 0.0).blob == first.blob
    assert box.add("d", part(second, 0), 0.0).blob is None  # there is room again


def test_a_sender_that_begins_another_blob_loses_the_one_longest_without_progress() -> None:
    cuts = [Cut.of(bytes([value] * 10), 5) for value in range(3)]
    box = Reassembler(max_blob=10, max_total=20, per_sender=2)
    box.add("c", part(cuts[0], 0), 0.0)
    box.add("c", part(cuts[1], 0), 1.0)
    box.add("c", part(cuts[2], 0), 2.0)
    assert [box.is_open("c", cut.digest) for cut in cuts] == [False, True, True]


def test_a_blob_without_progress_is_dropped_in_the_end_and_gives_its_room_back() -> None:
    cut = Cut.of(bytes(100), 50)
    box = Reassembler(max_blob=100, max_total=100, expire_s=60.0)
    box.add("c", part(cut, 0), 0.0)
    box.tick(59.0)
    assert len(box) == 1
    assert box.tick(60.0) == []
    assert len(box) == 0
    assert box.add("d", part(cut, 0), 60.0).blob is None


def test_a_clock_that_jumps_back_only_makes_it_wait() -> None:
    cut, box = Cut.of(TEN, 5), roomy()
    box.add("c", part(cut, 0), 1000.0)
    assert box.tick(0.0) == []
    assert box.add("c", part(cut, 0), 0.0).ask == ()
    assert box.add("c", part(cut, 1), 0.0).blob == TEN


@settings(max_examples=200)
@given(
    count=st.integers(1, 30),
    window=st.sampled_from([None, 1, 4]),
    data=st.data(),
)
def test_whatever_is_lost_doubled_or_overtaken_the_blob_arrives(
    count: int, window: int | None, data: st.DataObject
) -> None:
    cut = Cut.of(bytes(index % 251 for index in range(count * 3)), 3)
    box = Reassembler(max_blob=1000, max_total=1000, window=window)
    under_way = list(range(cut.count if window is None else min(window, cut.count)))
    now, losses = 0.0, 20
    for _ in range(1000):
        if not under_way:
            now = box.next_deadline if box.next_deadline is not None else now
            asks = box.tick(now)
            under_way += [index for ask in asks for index in ask.parts] or [0]  # or the sender's probe
            continue
        index = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
        fate = data.draw(st.sampled_from(["lost", "doubled", "arrives"])) if losses else "arrives"
        losses -= fate != "arrives"
        for _ in range({"lost": 0, "doubled": 2, "arrives": 1}[fate]):
            progress = box.add("c", part(cut, index), now)
            if progress.blob is not None:
                assert progress.blob == cut.blob
                assert len(box) == 0
                return
            assert len(progress.ask) <= blobs.MAX_ASK
            under_way += progress.ask
        now += 0.1
    raise AssertionError("the blob never arrived")


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.integers(1, 6), st.integers(0, 6)), max_size=40)
)
def test_what_is_promised_never_passes_the_bound_and_always_comes_back(parts: list[tuple[str, int, int, int]]) -> None:
    box = Reassembler(max_blob=50, max_total=80, window=4)
    for moment, (sender, size, count, index) in enumerate(parts):
        cut = Cut(bytes(size), blobs.digest(bytes(size)), count)
        try:
            box.add(sender, part(cut, index), float(moment))
        except (Malformed, ValueError):
            continue
        assert box._promised == sum(item.size for item in box._open.values()) <= 80
    box.tick(10_000.0)
    assert (len(box), box._promised) == (0, 0)
