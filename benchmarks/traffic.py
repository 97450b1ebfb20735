"""True bytes on the sockets, TCP payload with all of MQTT, resends and keep-alives: what a client and round costs.

In rounds of milliseconds most of what nodes say of themselves waits, so there every codec is measured in long rounds as
well: two devices of a farm train for six seconds each, one after the other, so that each says in every round what it
measured, and whatever else there is to be said of work that takes a while.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.federations import Bench, plan, running
from benchmarks.figures import Figure

TITLE = "Bytes per client and global round: 2 edges x 2 clients, LeNet (fp32 is 177,704 B), noise as updates"
RAW_BYTES = 177_704
#: How updates come up and the model goes down.
CODECS = ("raw | zstd", "int8 | zstd", "rot1", "dz(0.15)")
#: Rounds of a long run less those of a short one: what joining and leaving cost drops out.
SHORT, LONG = 2, 12
#: The same of rounds that take long, and seconds that a device trains there.
SLOW_SHORT, SLOW_LONG, SLOW_S = 2, 9, 6
LIMIT_S = 300.0

Reading = Mapping[str, int]
FARMS, DEVICES = 2, 2


def measure(quick: tuple[int, int] = (SHORT, LONG), slow: tuple[int, int] = (SLOW_SHORT, SLOW_LONG)) -> list[Figure]:
    """Count all bytes of a short and of a long run in each codec, in quick rounds and in slow ones.

    Slow ones are mostly waited for, so those of all codecs run side by side.
    """
    in_quick = [_per_round(codec, 0, *quick) for codec in CODECS]
    with ThreadPoolExecutor(len(CODECS)) as pool:
        in_slow = list(pool.map(partial(_per_round, seconds=SLOW_S, short=slow[0], long=slow[1]), CODECS))
    figures = []
    for codec, fast, long in zip(CODECS, in_quick, in_slow, strict=True):
        figures += [*_figures(codec, long), _control(codec, "rounds of milliseconds", fast)]
        figures.append(_control(codec, f"rounds of over {DEVICES * SLOW_S} s", long))
    return figures


def _per_round(codec: str, seconds: int, short: int, long: int) -> Mapping[str, float]:
    """Return the bytes of a round, all nodes together."""
    what = plan("idle_digits", farms=FARMS, devices=DEVICES, is_split=False, data={"seconds": seconds})
    tiers = [{**tier, "codec": codec, "downlink": codec, "quorum": 1.0} for tier in what.tiers]
    with running(what, is_metered=True) as bench:
        counted = []
        for rounds in (short, long):
            before = _quiet(bench)
            bench.run(rounds, tiers=tiers, limit_s=LIMIT_S)
            after = _quiet(bench)
            counted.append({name: after[name] - before[name] for name in after})
    return {name: (counted[1][name] - counted[0][name]) / (long - short) for name in counted[0]}


def _figures(codec: str, per_round: Mapping[str, float]) -> list[Figure]:
    """Return bytes a client and an edge; control is what is neither a model nor an update."""
    figures = []
    for hop, nodes, who in (("lan", FARMS * DEVICES, "client"), ("wan", FARMS, "edge")):
        for way in ("up", "down"):
            total, blobs = per_round[f"{hop}_{way}"] / nodes, per_round[f"{hop}_{way}_blobs"] / nodes
            note = f"{total / RAW_BYTES:.3f} x fp32; of it {total - blobs:,.0f} B control and framing"
            figures.append(Figure(what=f"{codec}: {hop.upper()}, {way}, per {who}", value=total, unit="B", note=note))
    return figures


def _control(codec: str, rounds: str, per_round: Mapping[str, float]) -> Figure:
    links = [f"{hop}_{way}" for hop in ("lan", "wan") for way in ("up", "down")]
    value = sum(per_round[link] - per_round[f"{link}_blobs"] for link in links) / (FARMS * DEVICES)
    return Figure(what=f"{codec}: control per client, {rounds}", value=value, unit="B", note="both hops, both ways")


def _quiet(bench: Bench) -> Reading:
    """Return all counters once nothing moves any more."""
    reading: Reading = bench.calm(lambda: _read(bench))
    return reading


def _read(bench: Bench) -> Reading:
    lan_up, lan_down = bench.federation.lan_bytes()
    wan_up, wan_down = bench.federation.wan_bytes()
    edges = [f"cloud/{farm.name}" for farm in bench.federation.plan.farms]
    lan_updates = [note for edge in edges for note in bench.notes(edge, "accepted") if "sender" in note]
    wan_updates = bench.notes("cloud", "accepted")
    models = {node: sum(note["bytes"] for note in bench.notes(node, "delta")) for node in ("cloud", *edges)}
    # A keyframe of the cloud's crosses every bridge; a farm's own lies in its broker until somebody asks.
    keyframes = sum(note["bytes"] for note in bench.notes("cloud", "keyframe"))
    return {
        "lan_up": lan_up,
        "lan_down": lan_down,
        "wan_up": wan_up,
        "wan_down": wan_down,
        "lan_up_blobs": sum(note["bytes"] for note in lan_updates),
        "wan_up_blobs": sum(note["bytes"] for note in wan_updates),
        "lan_down_blobs": sum(models[edge] * DEVICES for edge in edges),
        "wan_down_blobs": (models["cloud"] + keyframes) * FARMS,
    }
