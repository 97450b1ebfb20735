"""Which tensors of a model travel as one flat array through a chain of codecs, in what order, in how many bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from hfl_mqtt.learning import tables
from hfl_mqtt.learning.codecs import TINY, Chain, Flat
from hfl_mqtt.learning.weights import Layout, TensorSpec

_MAX_VARINT = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tensors that are one flat array: what goes in, the (most) bytes of each codec's side, and what is in the body.

    One that passes exactly has no sides, and its rest is what went in.
    """

    names: tuple[str, ...]
    flat: Flat
    sides: tuple[int, ...]
    rest: Flat
    is_coded: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything about a payload that follows from layout and chain."""

    layout: Layout
    chain: Chain

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """What travels, in its order: by name, but all that a codec sees at once stands where the first of it would."""
        together: dict[tuple[str, str], list[str]] = {}
        for name in sorted(self.layout):
            spec = self.layout[name]
            is_whole = _is_coded(spec) and self.chain.scope == "model"
            together.setdefault((spec.code, "") if is_whole else ("", name), []).append(name)
        return tuple(map(self._group, together.values()))

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
        flat = Flat(dtype=spec.dtype, size=sum(self.layout[name].size for name in names))
        is_coded = _is_coded(spec)
        sides, flats = self.chain.outline(flat) if is_coded else ([], [flat])
        return Group(names=tuple(names), flat=flat, sides=tuple(sides), rest=flats[-1], is_coded=is_coded)


def plan(layout: Layout, chain: Chain) -> Plan:
    """Return the plan; that of a layout seen lately is not made again."""
    return _plan(tuple(layout.items()), chain)


@lru_cache(maxsize=8)
def _plan(items: tuple[tuple[str, TensorSpec], ...], chain: Chain) -> Plan:
    return Plan(layout=dict(items), chain=chain)


def _is_coded(spec: TensorSpec) -> bool:
    return spec.is_float and spec.size >= TINY
