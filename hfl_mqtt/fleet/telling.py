"""What a person is told after rendering: what was written, summed up, and what to carry where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from hfl_mqtt.fleet.render import Plan
from hfl_mqtt.ops.brokers import CRL_FILE

#: So many are told one by one.
_FEW = 3
#: What a running Mosquitto reads again when it is told to; for all else it is started again.
_RELOADED = {"acl", "passwd", CRL_FILE}


def written(changed: Collection[str]) -> Iterator[str]:
    """Yield what has changed: each by its path, or a folder with how many where there are more than a few."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in changed:
        folders[path.partition("/")[0]].append(path)
    for folder, paths in folders.items():
        yield from paths if len(paths) <= _FEW else [f"{folder}/: {len(paths)} files"]


def renewed(made: Plan, subjects: Collection[str]) -> list[str]:
    """Return, as rendering tells of what it issued, the papers of brokers and bridges that got new ones before it."""
    return [
        f"brokers/{one.folder.name}/: papers of the {one.kind}"
        for one in made.held
        if one.subject in subjects and one.kind != "node"
    ]


def next_steps(made: Plan, changed: Collection[str], up: str) -> Iterator[str]:
    """Yield what is to be done with what has changed; `up` is the command that runs the fleet on this machine."""
    bundles = [path for path in changed if path.startswith("bundles/")]
    brokers: dict[str, set[str]] = defaultdict(set)
    for path in changed:
        head, *rest = path.split("/")
        if head == "brokers":
            # What was issued is told as `brokers/farm-a/: papers of the bridge`.
            name = rest[1].removeprefix(": papers of the ")
            brokers[rest[0]].add(rest[1] if name == rest[1] else f"{name}.crt and its key")
    is_first = len(bundles) == len(made.bundled) and len(brokers) == sum(1 for _ in made.site.brokers())
    if is_first and all("mosquitto.conf" in names for names in brokers.values()):
        yield f"Next: {up}, a rehearsal on this machine. Then to the boards, as docs/guide.md says:"
    yield from _to_brokers(brokers)
    install = "sudo device_agents/install.sh --bundle"
    if len(bundles) > _FEW:
        yield f"Next: {len(bundles)} of bundles/*.tar each to its board, there: {install} NAME.tar"
    else:
        for path in bundles:
            yield f"Next: {path} to its board, there: {install} {path.partition('/')[2]}"


def _to_brokers(brokers: Mapping[str, set[str]]) -> Iterator[str]:
    if len(brokers) > _FEW:
        names = ", ".join(sorted(brokers))
        yield f"Next: what has changed in brokers/ to the machines of {names}, and restart or reload Mosquitto there"
        return
    for name, files in brokers.items():
        which = " and ".join(f"brokers/{name}/{file}" for file in sorted(files)) if len(files) <= _FEW else ""
        verb = "reload" if files <= _RELOADED else "restart"
        yield f"Next: {which or f'brokers/{name}/'} to the machine of the broker of {name}, and {verb} it"
