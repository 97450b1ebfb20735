"""Random plans of faults over random small federations, each run to its end and checked against the invariants.

    python -m hfl_mqtt.sim.fuzz --plans 10000 --seed 0

A plan that breaks one is made as short as it can be, and told with the one command that replays it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hfl_mqtt.protocol.messages import Late, Tier
from hfl_mqtt.rounds.actions import Note
from hfl_mqtt.sim.faultplan import Fault, Keeps, What
from hfl_mqtt.sim.simulation import Moment
from hfl_mqtt.sim.trial import Result, Setting, Trial, regular_tree
from hfl_mqtt.transport.faults import Faults

#: How often each fault is drawn.
_WEIGHTS = {
    What.KILL: 6,
    What.WIPE: 1,
    What.POWER: 1,
    What.BROKER: 2,
    What.BRIDGE: 2,
    What.LINK: 2,
    What.NOISE: 2,
    What.SLOW: 1,
    What.DISK: 1,
    What.NO_WORK: 1,
    What.SLOW_WORK: 1,
}
#: How many children each node has, tier by tier.
_FANS = ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (2, 1, 2), (1, 2, 1))
_LOSSY = ("topk(0.5)", "int8 | zstd")
_CODECS = ("raw", "raw", "raw | zstd", *_LOSSY)
_NETWORKS = (None, Faults(latency_s=(0.0, 0.05)), Faults(latency_s=(0.01, 0.5), duplication=0.05))
WORK_S = (1.0, 4.0)
#: A run of a few rounds that is not over by then, in virtual time after the last fault, hangs.
PATIENCE_S = 6 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A federation and what goes wrong in it. Where it `is_exact`, its model must be that of an undisturbed run."""

    seed: int
    policy: str
    setting: Setting
    faults: tuple[Fault, ...]
    is_exact: bool


def draw(seed: int) -> Trouble:
    """Return the plan of that number; equal numbers give equal plans. Every fourth federation is signed."""
    rng = random.Random(seed)  # noqa: S311
    fans = rng.choice(_FANS)
    rounds, edge_rounds = rng.randint(2, 4), rng.choice([1, 1, 2])
    policy = rng.choice(["exact", "exact", "quorum", "next", "discount", "async", "offline"])
    codec = rng.choice(_CODECS)
    setting = Setting(
        tree=regular_tree(*fans),
        tiers=tuple(_tiers(policy, rng, fans, rounds, edge_rounds, codec)),
        seed=0,
        dice=seed,
        size=4,
        work_s=WORK_S,
        network=rng.choice(_NETWORKS),
        is_scored=rng.random() < 0.3,
        holders=2 if rng.random() < 0.15 else 1,
        lease_s=10.0,
        notice_s=rng.choice([0.0, 0.0, 20.0]),
        patience_s=PATIENCE_S,
        signed=seed % 4 == 3,
    )
    within_s = rounds * (edge_rounds ** (len(fans) - 1) * WORK_S[1] + 1.0)
    faults = tuple(_fault(rng, setting, within_s) for _ in range(rng.randint(1, 5)))
    # Who loses its disk, or takes over, knows nothing of what coding cut off. And it shows the parent's model as it is,
    # where its chain had led there in steps that were rounded; with one round each, the steps are the parent's own.
    forgets = setting.holders > 1 or any(one.what is What.WIPE for one in faults)
    is_exact = policy == "exact" and not (forgets and (codec in _LOSSY or edge_rounds > 1))
    return Trouble(seed=seed, policy=policy, setting=setting, faults=faults, is_exact=is_exact)


def _tiers(
    policy: str, rng: random.Random, fans: tuple[int, ...], rounds: int, edge_rounds: int, codec: str
) -> Iterator[Tier]:
    """Yield the cloud's tier and those below. Retries never run out: a run that fails here is a fault of ours."""
    late = {"next": Late.NEXT, "discount": Late.DISCOUNT, "async": Late.DISCOUNT, "offline": Late.DISCOUNT}
    for depth, fan in enumerate(fans):
        is_cloud = depth == 0
        below = len(fans) - 1 - depth
        tier = Tier(
            rounds=rounds if is_cloud else edge_rounds,
            quorum=fan if policy == "exact" else 0.5,
            open_for_s=60.0 * 10.0**below,
            grace_s=5.0 * 6.0**below,
            retries=1000,
            codec=codec,
            downlink=codec,
        )
        if policy in late:
            tier = replace(tier, late=late[policy] if is_cloud else rng.choice([Late.DROP, late[policy]]))
        if policy == "async" and is_cloud:
            tier = replace(tier, quorum=rng.randint(1, fan), grace_s=0.0)
        if policy == "offline" and not is_cloud:
            tier = replace(tier, offline_rounds=rng.randint(1, 5))
        yield tier


def _fault(rng: random.Random, setting: Setting, within_s: float) -> Fault:
    what = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    edges = [path for path in setting.tree if path != "cloud"]
    nodes = [f"{path}/{name}" for path in edges for name in setting.tree[path]]
    devices = [path for path in nodes if path not in setting.tree]
    holders = range(1, setting.holders + 1)
    boxes = edges if setting.holders == 1 else [f"{path}@box-{number}" for path in edges for number in holders]
    everybody = ["cloud", *boxes, *boxes, *devices]
    at_s = round(rng.uniform(0.0, within_s), 3)
    lasts_s = round(10 ** rng.uniform(-0.5, 2.3), 3)
    every_s = round(lasts_s / rng.randint(2, 6), 3) if rng.random() < 0.2 else None
    fault = Fault(who=rng.choice(everybody), what=what, at_s=at_s, lasts_s=lasts_s, every_s=every_s)
    if what in (What.KILL, What.WIPE):
        return replace(fault, moment=rng.choice([Moment.NOW, *Moment]))
    if what in (What.BROKER, What.POWER):
        keeps, saved_s = rng.choice(list(Keeps)), round(rng.uniform(0.1, 10.0), 3)
        return replace(fault, who=rng.choice(["cloud", *edges]), keeps=keeps, saved_s=saved_s)
    if what is What.BRIDGE:
        return replace(fault, who=rng.choice(edges))
    if what in (What.NOISE, What.SLOW):
        is_on_bridge = rng.random() < 0.5
        who = rng.choice(edges) if is_on_bridge else fault.who
        loss, duplication, reordering = (rng.choice([0.0, 0.1, 0.3]) for _ in range(3))
        corruption = rng.choice([0.0, 0.0, 0.2])
        if what is What.SLOW:
            return replace(fault, who=who, on_bridge=is_on_bridge, bytes_per_s=rng.choice([200.0, 2000.0]))
        return replace(
            fault,
            who=who,
            on_bridge=is_on_bridge,
            loss=loss or 0.05,
            duplication=duplication,
            reordering=reordering,
            corruption=corruption,
        )
    if what in (What.NO_WORK, What.SLOW_WORK):
        return replace(fault, who=rng.choice(devices), factor=rng.choice([3.0, 10.0, 100.0]))
    return fault


class Fuzz:
    """Runs plans; remembers the models of undisturbed runs."""

    def __init__(self) -> None:
        self._undisturbed: dict[str, str | None] = {}

    def run(self, trouble: Trouble) -> Result:
        """Run a plan to its end; see `Result.problems`."""
        result = _finished(Trial(trouble.setting, trouble.faults))
        if trouble.is_exact and not result.problems:
            wanted = self._model(trouble.setting)
            if result.model != wanted:
                result.problems.append(f"the model is {result.model}, undisturbed it is {wanted}")
        return result

    def shorten(self, trouble: Trouble) -> Trouble:
        """Return a plan with as few of these faults as break an invariant."""
        index = 0
        while index < len(trouble.faults):
            fewer = replace(trouble, faults=(*trouble.faults[:index], *trouble.faults[index + 1 :]))
            if self.run(fewer).problems:
                trouble = fewer
            else:
                index += 1
        return trouble

    def _model(self, setting: Setting) -> str | None:
        calm = replace(setting, dice=0, network=None, signed=False)  # signatures change no model
        key = repr(calm)
        if key not in self._undisturbed:
            self._undisturbed[key] = Trial(calm).finish().model
        return self._undisturbed[key]


def _finished(trial: Trial) -> Result:
    """Run to the end; what a machine raises is a broken invariant, too."""
    try:
        return trial.finish()
    except Exception as error:  # noqa: BLE001  (told with the command that replays it)
        result = trial.result(None, 0.0)
        where = _where(error)
        return replace(result, problems=[f"{type(error).__name__}: {error} ({where})"])


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    at = ""
    while trace is not None:
        at = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return at


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 where an invariant broke."""
    parser = argparse.ArgumentParser(prog="python -m hfl_mqtt.sim.fuzz", description=__doc__)
    parser.add_argument("--plans", type=int, default=1000, help="how many plans")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first; the others follow it")
    parser.add_argument("--only", help="of the plan's faults only these, such as 0,2")
    parser.add_argument("--show", action="store_true", help="print the plan and every note")
    parser.add_argument("--signed", action="store_true", help="all federations are signed, not one in four")
    parser.add_argument("--stop-after", type=int, default=20, help="end after so many plans that broke an invariant")
    options = parser.parse_args(arguments)
    fuzz, began_s, broken, client_rounds = Fuzz(), time.process_time(), 0, 0
    for number in range(options.plans):
        trouble = draw(options.seed + number)
        if options.signed:
            trouble = replace(trouble, setting=replace(trouble.setting, signed=True))
        if options.only is not None:
            kept = {int(index) for index in options.only.split(",") if index}
            faults = tuple(fault for index, fault in enumerate(trouble.faults) if index in kept)
            trouble = replace(trouble, faults=faults)
        result = _shown(fuzz, trouble) if options.show else fuzz.run(trouble)
        client_rounds += result.client_rounds
        if result.problems:
            broken += 1
            _tell(fuzz, trouble, result)
            if broken >= options.stop_after:
                break
        if (number + 1) % 500 == 0 and number + 1 < options.plans:
            _say_progress(number + 1, broken, began_s, client_rounds)
    _say_progress(number + 1, broken, began_s, client_rounds)
    return 1 if broken else 0


def _tell(fuzz: Fuzz, trouble: Trouble, result: Result) -> None:
    short = fuzz.shorten(trouble)
    kept = ",".join(str(trouble.faults.index(fault)) for fault in short.faults)
    only = "" if short.faults == trouble.faults else f" --only {kept or ','}"
    sys.stdout.write(f"BROKEN  {result.problems[0]}\n")
    sys.stdout.writelines(f"        {line}\n" for line in [trouble.policy, *map(str, short.faults)])
    sys.stdout.write(f"        python -m hfl_mqtt.sim.fuzz --plans 1 --seed {trouble.seed}{only} --show\n")
    sys.stdout.flush()


def _shown(fuzz: Fuzz, trouble: Trouble) -> Result:
    said = [f"policy {trouble.policy}", *map(str, trouble.setting.tiers), *map(str, trouble.faults)]
    sys.stdout.writelines(f"{line}\n" for line in said)
    shown = Trial(trouble.setting, trouble.faults)

    def hear(at_s: float, path: str, entry: Note) -> None:
        sys.stdout.write(f"{at_s:10.3f}  {path:20} {entry.event} {entry.fields}\n")

    shown.listener = hear
    _finished(shown)
    return fuzz.run(trouble)


def _say_progress(plans: int, broken: int, began_s: float, client_rounds: int) -> None:
    taken_s = max(time.process_time() - began_s, 1e-9)
    sys.stdout.write(
        f"{plans} plans, {broken} broke an invariant; {taken_s:.0f} s of one core, {1000 * taken_s / plans:.0f} ms a "
        f"plan, {client_rounds / taken_s:.0f} client-rounds a second\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
