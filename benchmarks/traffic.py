"""True bytes on the sockets, TCP payload with all of MQTT, resends and keep-alives: what a client and round costs."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.federations import Bench, plan, running
from benchmarks.figures import Figure

TITLE = "Bytes per client and global round: 2 edges x 2 clients, LeNet (fp32 is 177,704 B), noise as update"
RAW_BYTES = 177_704
CODECS = ("raw | zstd", "int8 | zstd")
#: A long run less a short one: what joining and leaving cost drops out.
SHORT, LONG = 2, 10

Reading = Mapping[str, int]


def measure(short: int = SHORT, long: int = LONG) -> list[Figure]:
    """Count all bytes of a short and of a long run in each codec."""
    figures = []
    what = plan("idle_digits", farms=2, devices=2, is_split=False)
    with running(what) as bench:
        for codec in CODECS:
            tiers = [{**tier, "codec": codec} for tier in what.tiers]
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
    figures = []
    for hop, nodes, who in (("lan", clients, "client"), ("wan", farms, "edge")):
        for way, said in (("up", "up"), ("down", "down")):
            total, blobs = per_round[f"{hop}_{way}"] / nodes, per_round[f"{hop}_{way}_blobs"] / nodes
            note = f"{total / RAW_BYTES:.3f} x fp32; of it {total - blobs:,.0f} B control and framing"
            figures.append(Figure(what=f"{codec}: {hop.upper()}, {said}, per {who}", value=total, unit="B", note=note))
    return figures


def _quiet(bench: Bench) -> Reading:
    """Return all counters once nothing moves any more."""
    reading: Reading = bench.calm(lambda: _read(bench))
    return reading


def _read(bench: Bench) -> Reading:
    wan_up, wan_down = bench.federation.wan_bytes()
    clients, farms = bench.federation.plan.clients, bench.federation.plan.farms
    edges = [f"cloud/{farm.name}" for farm in farms]
    metrics = [bench.fleet[path].metrics for path in clients]
    lan_updates = [note for edge in edges for note in bench.notes(edge, "accepted") if "sender" in note]
    wan_updates = bench.notes("cloud", "accepted")
    models = {
        node: sum(1 for note in bench.notes(node, "opened")) * _model_size(bench, node) for node in ("cloud", *edges)
    }
    return {
        "lan_up": sum(values.get("socket_out") or 0 for values in metrics),
        "lan_down": sum(values.get("socket_in") or 0 for values in metrics),
        "wan_up": wan_up,
        "wan_down": wan_down,
        "lan_up_blobs": sum(note["bytes"] for note in lan_updates),
        "wan_up_blobs": sum(note["bytes"] for note in wan_updates),
        "lan_down_blobs": sum(models[f"cloud/{farm.name}"] * len(farm.devices) for farm in farms),
        "wan_down_blobs": models["cloud"] * len(farms),
    }


def _model_size(bench: Bench, node: str) -> int:
    manifest = bench.fleet[node].manifest if node in bench.fleet else None
    return manifest.size if manifest is not None else 0
