"""True bytes on the sockets, TCP payload with all of MQTT, resends and keep-alives: what a client and round costs."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.federations import Bench, plan, running
from benchmarks.figures import Figure

TITLE = "Bytes per client and global round: 2 edges x 2 clients, LeNet (fp32 is 177,704 B), noise as updates"
RAW_BYTES = 177_704
#: How updates come up and the model goes down.
CODECS = ("raw | zstd", "int8 | zstd", "rot1", "dz(0.15)")
#: A long run less a short one: what joining and leaving cost drops out.
SHORT, LONG = 2, 12

Reading = Mapping[str, int]


def measure(short: int = SHORT, long: int = LONG) -> list[Figure]:
    """Count all bytes of a short and of a long run in each codec."""
    figures = []
    what = plan("idle_digits", farms=2, devices=2, is_split=False)
    with running(what) as bench:
        for codec in CODECS:
            tiers = [{**tier, "codec": codec, "downlink": codec} for tier in what.tiers]
            counted = []
            for rounds in (short, long):
                before = _quiet(bench)
                bench.run(rounds, tiers=tiers)
                after = _quiet(bench)
                counted.append({name: after[name] - before[name] for name in after})
            per_round = {name: (counted[1][name] - counted[0][name]) / (long - short) for name in counted[0]}
            figures += _figures(codec, per_round, clients=len(what.clients), farms=len(what.farms))
    return figures


def _figures(codec: str, per_round: Mapping[str, float], *, clients: int, farms: int) -> list[Figure]:
    """Return bytes a client and an edge; control is what is neither a model nor an update."""
    figures, control = [], 0.0
    for hop, nodes, who in (("lan", clients, "client"), ("wan", farms, "edge")):
        for way in ("up", "down"):
            total, blobs = per_round[f"{hop}_{way}"] / nodes, per_round[f"{hop}_{way}_blobs"] / nodes
            control += (total - blobs) * nodes / clients
            note = f"{total / RAW_BYTES:.3f} x fp32; of it {total - blobs:,.0f} B control and framing"
            figures.append(Figure(what=f"{codec}: {hop.upper()}, {way}, per {who}", value=total, unit="B", note=note))
    # Metrics go out at most every 10 s: in rounds of milliseconds they hardly count, in long ones they are most of it.
    note = "both hops, both ways; metrics hardly count in rounds this short"
    return [*figures, Figure(what=f"{codec}: control per client and round", value=control, unit="B", note=note)]


def _quiet(bench: Bench) -> Reading:
    """Return all counters once nothing moves any more."""
    reading: Reading = bench.calm(lambda: _read(bench))
    return reading


def _read(bench: Bench) -> Reading:
    wan_up, wan_down = bench.federation.wan_bytes()
    farms = bench.federation.plan.farms
    metrics = [bench.fleet[path].metrics for path in bench.federation.plan.clients]
    edges = [f"cloud/{farm.name}" for farm in farms]
    lan_updates = [note for edge in edges for note in bench.notes(edge, "accepted") if "sender" in note]
    wan_updates = bench.notes("cloud", "accepted")
    models = {node: sum(note["bytes"] for note in bench.notes(node, "delta")) for node in ("cloud", *edges)}
    # A keyframe of the cloud's crosses every bridge; a farm's own lies in its broker until somebody asks.
    keyframes = sum(note["bytes"] for note in bench.notes("cloud", "keyframe"))
    return {
        "lan_up": sum(values.get("socket_out") or 0 for values in metrics),
        "lan_down": sum(values.get("socket_in") or 0 for values in metrics),
        "wan_up": wan_up,
        "wan_down": wan_down,
        "lan_up_blobs": sum(note["bytes"] for note in lan_updates),
        "wan_up_blobs": sum(note["bytes"] for note in wan_updates),
        "lan_down_blobs": sum(models[f"cloud/{farm.name}"] * len(farm.devices) for farm in farms),
        "wan_down_blobs": (models["cloud"] + keyframes) * len(farms),
    }
