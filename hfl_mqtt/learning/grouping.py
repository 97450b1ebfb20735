"""Which tensors of a model travel as one flat array through a chain of codecs, in what order, in how many bytes.

A model of many small tensors shall cost little more than one of few. So tensors of one dtype that pass exactly and
stand beside one another are one flat array too, and what is small is read and checked together: a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from hfl_mqtt.learning import tables
from hfl_mqtt.learning.codecs import TINY, Chain, Flat
from hfl_mqtt.learning.weights import Layout, TensorSpec

_MAX_VARINT = 7
#: Bytes of values in a batch, and in tensors that pass exactly as one, but where one alone has more.
BATCH_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tensors that are one flat array: what goes into each codec, and last what is in the body; the (most) bytes of
    each codec's side.

    One that passes exactly has no sides, and its rest is what went in.
    """

    names: tuple[str, ...]
    ends: tuple[int, ...]
    flats: tuple[Flat, ...]
    sides: tuple[int, ...]
    is_coded: bool

    @property
    def flat(self) -> Flat:
        """What goes in."""
        return self.flats[0]

    @property
    def rest(self) -> Flat:
        """What is in the body."""
        return self.flats[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Groups that stand beside one another in the body."""

    groups: tuple[Group, ...]
    body_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything about a payload that follows from layout and chain."""

    layout: Layout
    chain: Chain

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """What travels, in its order: by name, but all that a codec sees at once stands where the first of it would."""
        rows: list[list[str]] = []
        whole: dict[str, list[str]] = {}
        open_for, room = "", 0  # the dtype of the last row, where more that passes exactly may join it, and how much
        for name in sorted(self.layout):
            spec = self.layout[name]
            if not self._is_coded(spec):
                if spec.code != open_for or spec.size_bytes > room:
                    rows.append([])
                    open_for, room = spec.code, BATCH_BYTES
                rows[-1].append(name)
                room -= spec.size_bytes
            elif self.chain.scope == "model" and spec.code in whole:
                whole[spec.code].append(name)
            else:
                rows.append([name])
                open_for = ""
                whole[spec.code] = rows[-1]
        return tuple(map(self._group, rows))

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """The groups, those that have few bytes together."""
        rows: list[list[Group]] = []
        room = 0
        for group in self.groups:
            if not rows or group.flat.size_bytes > room:
                rows.append([])
                room = BATCH_BYTES
            rows[-1].append(group)
            room -= group.flat.size_bytes
        return tuple(Batch(groups=tuple(row), body_bytes=sum(one.rest.size_bytes for one in row)) for row in rows)

    @cached_property
    def fingerprint(self) -> bytes:
        """See `tables.fingerprint`."""
        return tables.fingerprint(self.layout)

    @cached_property
    def body_bytes(self) -> int:
        """Bytes of the body before it is packed."""
        return sum(group.rest.size_bytes for group in self.groups)

    @cached_property
    def packed_limits(self) -> list[int]:
        """The most bytes of the body before and after each bytes codec."""
        return list(accumulate(self.chain.packers, lambda total, packer: packer.limit(total), initial=self.body_bytes))

    @cached_property
    def alignment(self) -> int:
        """What the body's place in a payload is a multiple of."""
        return 1 if self.chain.packers else max((group.rest.dtype.itemsize for group in self.groups), default=1)

    @cached_property
    def size_limit(self) -> int:
        """The most bytes of a payload in either form."""
        head = 32 + len(str(self.chain)) + tables.size_limit(self.layout)
        return head + sum(side + _MAX_VARINT for group in self.groups for side in group.sides) + self.packed_limits[-1]

    def _group(self, names: list[str]) -> Group:
        spec = self.layout[names[0]]
        ends = tuple(accumulate(self.layout[name].size for name in names))
        flat = Flat(dtype=spec.dtype, size=ends[-1])
        is_coded = self._is_coded(spec)
        sides, flats = self.chain.outline(flat) if is_coded else ([], [flat])
        return Group(names=tuple(names), ends=ends, flats=tuple(flats), sides=tuple(sides), is_coded=is_coded)

    def _is_coded(self, spec: TensorSpec) -> bool:
        return spec.is_float and spec.size >= TINY and not self.chain.is_raw


def plan(layout: Layout, chain: Chain) -> Plan:
    """Return the plan; that of a layout seen lately is not made again."""
    return _plan(tuple(layout.items()), chain)


@lru_cache(maxsize=8)
def _plan(items: tuple[tuple[str, TensorSpec], ...], chain: Chain) -> Plan:
    return Plan(layout=dict(items), chain=chain)
