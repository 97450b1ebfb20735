import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfl_mqtt.errors import Malformed
from hfl_mqtt.protocol import blobs
from hfl_mqtt.protocol.blobs import Ask, Cut, Full, Progress, Reassembler
from hfl_mqtt.protocol.limits import MAX_ASK, MAX_BLOB, MAX_PARTS, PART_SIZE
from hfl_mqtt.protocol.messages import Buffer, KeyPart, ModelPart

TEN = bytes(range(10))


def part(cut: Cut, index: int) -> KeyPart:
    return piece(cut.name, index, cut.count, len(cut.blob), cut.part(index))


def piece(blob: str, index: int, count: int, size: int, data: bytes) -> KeyPart:
    return KeyPart(version=0, blob=blob, index=index, count=count, size=size, data=data)


def roomy(window: int | None = 4, **options: float) -> Reassembler:
    return Reassembler(max_blob=1000, max_total=1000, window=window, **options)  # type: ignore[arg-type]


def test_a_blob_is_cut_into_even_parts() -> None:
    cut = Cut.of(TEN, part_size=4)
    assert [cut.part(index) for index in range(cut.count)] == [TEN[:4], TEN[4:8], TEN[8:]]


def test_a_blob_of_one_part_is_that_part() -> None:
    cut = Cut.of(TEN, part_size=10)
    assert (cut.count, cut.part(0)) == (1, TEN)


def test_a_piece_of_a_blob_of_many_is_read_when_it_is_asked_for_and_each_time() -> None:
    reads: list[tuple[int, int]] = []

    class Lying:
        def __len__(self) -> int:
            return len(TEN)

        def read(self, start: int, size: int) -> bytes:
            reads.append((start, size))
            return TEN[start : start + size]

        def view(self) -> memoryview:
            return memoryview(TEN)

    cut = Cut.kept([TEN], lambda _pieces: Lying(), part_size=4)
    pieces = [cut.piece(index) for index in range(cut.count)]
    assert ([len(one) for one in pieces], reads) == ([4, 4, 2], [])
    assert [bytes(one) for one in pieces] == [TEN[:4], TEN[4:8], TEN[8:]]
    assert bytes(pieces[2]) == TEN[8:]
    assert reads == [(0, 4), (4, 4), (8, 2), (8, 2)]


def test_the_only_piece_of_a_blob_is_its_bytes() -> None:
    assert Cut.of(TEN, part_size=10).piece(0) == TEN


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


def test_parts_of_a_delta_and_of_a_keyframe_are_put_together_alike() -> None:
    cut, box = Cut.of(TEN, 5), roomy()
    first = ModelPart(frame=0, version=1, blob=cut.name, index=0, count=2, size=10, data=cut.part(0))
    assert box.add("c", first, 0.0).blob is None
    assert box.add("c", part(cut, 1), 0.0).blob == TEN


@pytest.mark.parametrize("holder", [bytearray, memoryview])
def test_what_was_put_together_is_cut_again_as_it_is(holder: type[bytearray] | type[memoryview]) -> None:
    held = Cut.of(holder(TEN), 4)
    assert (held.digest, held.count, held.part(1)) == (Cut.of(TEN, 4).digest, 3, TEN[4:8])


def test_a_models_digest_is_of_the_digest_before_it_and_of_its_delta() -> None:
    start, delta = blobs.digest(b"weights"), blobs.digest(b"delta")
    both = hashlib.sha256(b"weights").digest() + hashlib.sha256(b"delta").digest()
    assert blobs.next_digest(start, delta) == hashlib.sha256(both).hexdigest()


def test_a_models_digest_holds_all_that_came_before_and_in_which_order() -> None:
    start, one, two = (blobs.digest(text) for text in (b"start", b"one", b"two"))

    def after(*deltas: str) -> str:
        digest = start
        for delta in deltas:
            digest = blobs.next_digest(digest, delta)
        return digest

    assert len({start, after(one), after(two), after(one, two), after(two, one), after(one, one)}) == 6


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
        if box.tick(now) == [Ask("c", cut.name, (0,))]:
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
    assert box.tick(5.0) == [Ask("c", cut.name, (1, 2, 3, 4))]
    box.add("c", part(cut, 1), 6.0)
    assert box.tick(60.0) == [Ask("c", cut.name, (2, 3, 4, 5, 6, 7, 8, 9))]


def test_at_most_64_parts_are_asked_for_at_once() -> None:
    cut, box = Cut.of(bytes(500), 1), roomy(window=None)
    box.add("c", part(cut, 0), 0.0)
    box.add("c", part(cut, 1), 0.0)
    assert [len(ask.parts) for ask in box.tick(60.0)] == [64]
    assert len(box.missing("c", cut.name)) == 64


def test_it_says_what_is_open_and_what_it_lacks() -> None:
    cut, box = Cut.of(TEN, 3), roomy()
    assert (box.is_open("c", cut.name), box.missing("c", cut.name)) == (False, ())
    box.add("c", part(cut, 1), 0.0)
    assert (box.is_open("c", cut.name), box.missing("c", cut.name)) == (True, (0, 2, 3))
    box.clear()
    assert (box.is_open("c", cut.name), box.next_deadline) == (False, None)


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


# ------------------------------------------------------------------ announced, and under way


def test_room_is_made_for_what_is_announced_and_its_first_parts_are_asked_for() -> None:
    cut, box = Cut.of(TEN, 1), roomy(window=4)
    assert box.reserve("c", cut.name, 10, 10, 0.0) == (0, 1, 2, 3)
    assert box.is_open("c", cut.name)
    # Nothing came unasked, so from here it goes on as with any other: half of the window is here, two more are wanted.
    assert [box.add("c", part(cut, index), 0.0).ask for index in range(4)] == [(), (4, 5), (), (6, 7)]


def test_a_blob_of_few_parts_is_asked_for_whole_and_arrives() -> None:
    cut, box = Cut.of(TEN, 5), roomy()
    assert box.reserve("c", cut.name, 10, 2, 0.0) == (0, 1)
    assert [box.add("c", part(cut, index), 0.0).blob for index in (0, 1)] == [None, TEN]


def test_what_is_announced_again_is_not_asked_for_again() -> None:
    cut, box = Cut.of(TEN, 5), roomy()
    box.reserve("c", cut.name, 10, 2, 0.0)
    assert box.reserve("c", cut.name, 10, 2, 1.0) == ()
    assert len(box) == 1


def test_an_announced_blob_of_which_nothing_comes_is_asked_for_again_and_dropped_in_the_end() -> None:
    cut, box = Cut.of(TEN, 5), roomy(stall_s=5.0, expire_s=60.0)
    box.reserve("c", cut.name, 10, 2, 100.0)
    assert box.next_deadline == 105.0
    assert box.tick(105.0) == [Ask("c", cut.name, (0, 1))]
    box.tick(160.0)
    assert len(box) == 0


def test_what_is_announced_waits_until_there_is_room() -> None:
    first, second = Cut.of(bytes(60), 30), Cut.of(bytes(50), 25)
    box = Reassembler(max_blob=100, max_total=100)
    box.reserve("c", first.name, 60, 2, 0.0)
    with pytest.raises(Full, match="60 bytes of 100"):
        box.reserve("d", second.name, 50, 2, 0.0)
    box.drop("c")
    assert box.reserve("d", second.name, 50, 2, 0.0) == (0, 1)


@pytest.mark.parametrize(
    ("size", "count", "reason"),
    [
        (1001, 1, "1001 bytes, at most 1000"),
        (5, 4, "5 bytes are not cut into 4 parts"),  # 2 + 2 + 1 leaves nothing for the last
        (5, 6, "5 bytes are not cut into 6 parts"),
        (1, MAX_PARTS, "1 bytes are not cut into 4096 parts"),
    ],
)
def test_what_is_announced_and_can_never_come_is_refused_at_once(size: int, count: int, reason: str) -> None:
    box = roomy()
    with pytest.raises(Malformed, match=reason):
        box.reserve("c", "0" * 16, size, count, 0.0)
    assert (len(box), box.progress()) == (0, None)


def test_an_announced_part_longer_than_a_packet_is_refused_at_once() -> None:
    box = Reassembler(max_blob=MAX_BLOB, max_total=MAX_BLOB)
    with pytest.raises(Malformed, match=f"{PART_SIZE + 1} bytes are not cut into 1 parts of at most {PART_SIZE}"):
        box.reserve("c", "0" * 16, PART_SIZE + 1, 1, 0.0)
    assert box.reserve("c", "0" * 16, PART_SIZE + 1, 2, 0.0) == (0, 1)


@given(size=st.integers(1, 2000), part_size=st.integers(1, 300))
def test_every_cut_that_is_announced_is_taken(size: int, part_size: int) -> None:
    cut = Cut.of(bytes(size), part_size)
    box = Reassembler(max_blob=2000, max_total=2000, window=None)
    assert box.reserve("c", cut.name, size, cut.count, 0.0) == tuple(range(min(cut.count, MAX_ASK)))


def test_progress_is_told_in_bytes_of_all_that_is_under_way() -> None:
    ten, six = Cut.of(TEN, 2), Cut.of(bytes(6), 3)
    box = Reassembler(max_blob=100, max_total=100)
    assert box.progress() is None
    box.reserve("c", ten.name, 10, 5, 0.0)
    assert box.progress() == (0, 10)
    box.add("c", part(ten, 3), 0.0)
    assert box.progress() == (2, 10)
    box.add("d", part(six, 0), 0.0)
    assert box.progress() == (5, 16)
    box.add("d", part(six, 1), 0.0)  # whole, so no longer under way
    assert box.progress() == (2, 10)


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
        box.add("c", piece("0" * 16, index, count, size, bytes(length)), 0.0)
    assert len(box) == 0


def test_two_parts_that_disagree_are_refused() -> None:
    box = roomy()
    box.add("c", piece("0" * 16, 0, 2, 10, bytes(5)), 0.0)
    with pytest.raises(Malformed, match="disagree"):
        box.add("c", piece("0" * 16, 1, 5, 10, bytes(2)), 0.0)


def test_a_blob_that_does_not_hash_to_its_name_is_forgotten() -> None:
    box = roomy()
    with pytest.raises(Malformed, match="does not hash"):
        box.add("c", piece("0" * 16, 0, 1, 1, b"x"), 0.0)
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
    assert [box.is_open("c", cut.name) for cut in cuts] == [False, True, True]


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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("is_announced", [False, True])
def test_what_a_peer_declares_takes_no_memory_before_it_comes(is_announced: bool) -> None:
    count = 1024
    size = count * PART_SIZE  # 256 MiB
    box = Reassembler(max_blob=size, max_total=size)
    data = bytes(PART_SIZE)
    before = resident_bytes()
    if is_announced:
        box.reserve("c", "0" * 16, size, count, 0.0)
    box.add("c", piece("0" * 16, count - 1, count, size, data), 0.0)
    assert box.progress() == (PART_SIZE, size)
    assert resident_bytes() - before < 16 * 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_blob_of_many_parts_is_given_as_it_was_put_together_and_outlives_the_box() -> None:
    whole = bytes(range(256)) * 40
    cut, box = Cut.of(whole, 1000), Reassembler(max_blob=20_000, max_total=20_000, window=None)
    found: Buffer | None = None
    for index in reversed(range(cut.count)):
        found = box.add("c", part(cut, index), 0.0).blob
    box.clear()
    del box
    assert found is not None
    assert bytes(found) == whole
    assert found[3:5] == whole[3:5]


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
            assert len(progress.ask) <= MAX_ASK
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
