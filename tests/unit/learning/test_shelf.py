"""The shelf: large things in files without a name, small ones in memory, the same numbers either way."""

from pathlib import Path

import numpy as np
import pytest

from hfl_mqtt.errors import HflError, Refused
from hfl_mqtt.learning.arithmetic import TensorArithmetic
from hfl_mqtt.learning.shelf import Lying, Shelf, let_go
from hfl_mqtt.learning.weights import layout_of
from hfl_mqtt.protocol.blobs import Cut, in_memory

DELTA = {
    "b": np.array([1.5, -2.0], "f4"),
    "n": np.array(7, "i8"),
    "w": np.arange(6, dtype="f4").reshape(2, 3),
    "empty": np.empty((0, 4), "f4"),
}


def test_bytes_come_back_part_by_part_and_whole(tmp_path: Path) -> None:
    lying = Shelf(tmp_path, least=8).keep([b"0123", memoryview(b"4567")])
    assert isinstance(lying, Lying)
    assert (len(lying), lying.read(3, 2), bytes(lying.view())) == (8, b"34", b"01234567")


def test_nobody_finds_the_files(tmp_path: Path) -> None:
    kept = Shelf(tmp_path, least=1).keep([b"secret"])
    assert (len(kept), list(tmp_path.iterdir())) == (6, [])


def test_what_is_small_stays_in_memory(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, least=8)
    assert shelf.keep([b"012", b"345"]) == b"012345"
    assert shelf.weights({"b": DELTA["b"][:1]}.items()) == {"b": DELTA["b"][:1]}


def test_a_view_that_was_let_go_can_be_looked_at_again(tmp_path: Path) -> None:
    lying = Shelf(tmp_path, least=1).keep([b"0123"])
    assert isinstance(lying, Lying)
    view = lying.view()
    assert bytes(view) == b"0123"
    let_go(view[1:])
    assert bytes(view) == b"0123"


def test_what_is_no_view_of_the_shelf_is_not_touched_by_letting_go() -> None:
    import mmap

    room = mmap.mmap(-1, 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room[:] = b"0123"
    let_go(memoryview(room))
    assert room[:] == b"0123"


def test_tensors_come_back_with_dtype_and_shape(tmp_path: Path) -> None:
    found = Shelf(tmp_path, least=1).weights(DELTA.items())
    assert layout_of(found) == layout_of(DELTA)
    assert {name: values.tolist() for name, values in found.items()} == {
        name: values.tolist() for name, values in DELTA.items()
    }
    found["b"][0] = 9  # an array of the reader's own
    assert found["b"][0] == 1.5


@pytest.mark.parametrize("codec", ["raw", "raw | zstd", "int8 | zstd", "rot1"])
def test_arithmetic_gives_the_same_bits_with_a_shelf_and_without(tmp_path: Path, codec: str) -> None:
    rng = np.random.default_rng(1)
    a, b = ({"w": rng.normal(size=3000).astype("f4"), "n": np.array([3], "i8")} for _ in range(2))
    given = []
    for arithmetic in (TensorArithmetic(), TensorArithmetic(shelf=Shelf(tmp_path, least=1))):
        data = arithmetic.encode(a, codec, 5)
        delta = arithmetic.decode(data, layout_of(a))
        total = arithmetic.accumulator(layout_of(a), (codec,))
        total.add(data, 3)
        both = arithmetic.add(delta, b)
        again, said, left = arithmetic.carry(both, codec, 7)
        parts = [delta, arithmetic.step(total), both, arithmetic.subtract(delta, b), arithmetic.subtract(None, b), said]
        parts += [left] if left is not None else []
        given.append([again, *(arithmetic.encode(part, "raw", 0) for part in parts)])
    assert given[0] == given[1]


def test_adding_what_does_not_fit_is_refused_with_a_shelf_too(tmp_path: Path) -> None:
    arithmetic = TensorArithmetic(shelf=Shelf(tmp_path, least=1))
    with pytest.raises(Refused, match="'w' is float32"):
        arithmetic.add(DELTA, {**DELTA, "w": DELTA["w"].T})


def test_a_cut_is_the_same_wherever_its_bytes_lie(tmp_path: Path) -> None:
    pieces = [b"abc", b"defghij"]
    here, there = Cut.kept(pieces, in_memory, 4), Cut.kept(pieces, Shelf(tmp_path, least=1).keep, 4)
    assert isinstance(there.held, Lying)
    assert (there.digest, there.count, there.size, bytes(there.blob)) == (here.digest, 3, 10, b"abcdefghij")
    assert (
        [there.part(index) for index in range(3)]
        == [here.part(index) for index in range(3)]
        == [b"abcd", b"efgh", b"ij"]
    )


def test_a_missing_directory_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HflError, match="state_dir"):
        Shelf(tmp_path / "gone", least=1).keep([b"x"])
