"""Names, paths and texts that are meant to be taken for something else."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

from hfl_mqtt.errors import ConfigError
from hfl_mqtt.fleet import bundle
from hfl_mqtt.ops.journal import sentence
from hfl_mqtt.protocol import statements
from hfl_mqtt.protocol.messages import Decline
from hfl_mqtt.protocol.wire import encode
from hfl_mqtt.trust.identity import Identity
from tests.attacks.rows import Seen, row
from tests.attacks.stage import FARM, FEDERATION, PI, Stage
from tests.attacks.updates import CALL_TOPIC, next_call
from tests.broker.processes import hfl

_EVIL = "../../evil"


def files_of(stage: Stage) -> set[Path]:
    return {path for path in stage.directory.rglob("*") if "evil" in path.name}


@row("paths in ids", "runs, names, holders and topics such as ../../evil, by a broker that was taken over", "m-path")
def paths_in_ids(stage: Stage) -> Seen:
    enemy, rogue = stage.enemy("m-path").join(), stage.rogue()
    own = f"hfl/{FEDERATION}/{FARM}/m-path/@"
    true = {"v": 1, "run": "r", "round": [1], "reason": "x"}
    before = len(stage.notes(FARM, "malformed"))
    said = [
        (f"{own}/tele/decline", {**true, "run": _EVIL}),
        (f"{own}/tele/update", {**true, "run": _EVIL, "base": "0" * 16, "blob": "/" * 16, "size": 1, "count": 1}),
        (f"{own}/tele/update", {**true, "base": _EVIL, "blob": "0" * 16, "size": 1, "count": 1}),
    ]
    for topic, document in said:
        enemy.say(topic, json.dumps(document))
    others = [
        f"hfl/{FEDERATION}/{FARM}/../evil/@/tele/decline",
        f"hfl/{FEDERATION}/{FARM}/..evil/@/stat/state",
        f"hfl/{FEDERATION}/{FARM}/evil\\x/@/tele/decline",
        f"hfl/{FEDERATION}/{FARM}/{'e' * 70}/@/tele/decline",
        f"hflb/{FEDERATION}/{FARM}/m-path/@/up/../evil",
    ]
    for topic in others:
        rogue.say(topic, json.dumps({**true, "state": "ready", "boot": 1}))
    rogue.say(f"hfl/{FEDERATION}/{PI}/@/cmnd/assign", json.dumps({"v": 1, "to": _EVIL}))
    rogue.say(f"hfl/{FEDERATION}/{PI}/@/cmnd/assign", json.dumps({"v": 1, "to": f"{FARM}/evil"}))
    stage.note(FARM, "malformed", after=before + len(said) - 1)
    stage.note(PI, "malformed")
    told = stage.note(PI, "assign_refused")["reason"]
    stage.goes_on()
    assert files_of(stage) == set()
    assert not stage.notes(FARM, "joined", sender=f"{FARM}/..evil")
    enemy.part()
    return Seen(
        happened=f"{len(said) + len(others) + 2} tried; none is a message of the protocol, no file is made anywhere",
        reported=f"the journals of edge and device: `malformed`; assign: {told}",
    )


@row("paths in a bundle", "tars with ../, absolute names, links, devices, bombs and doubles in the place of a bundle")
def paths_in_a_bundle(stage: Stage) -> Seen:
    folder = stage.directory / "unpacked"
    kinds = {
        "a name that climbs": ("../agent.yaml", tarfile.REGTYPE, ""),
        "an absolute name": ("/etc/hfl-mqtt/agent.yaml", tarfile.REGTYPE, ""),
        "a name that is none of a bundle's": ("evil.py", tarfile.REGTYPE, ""),
        "a link out": ("agent.yaml", tarfile.SYMTYPE, "/etc/passwd"),
        "a hard link": ("agent.yaml", tarfile.LNKTYPE, "/etc/passwd"),
        "a device": ("agent.yaml", tarfile.CHRTYPE, ""),
        "a folder": ("agent.yaml", tarfile.DIRTYPE, ""),
        "a pipe": ("agent.yaml", tarfile.FIFOTYPE, ""),
    }
    reasons = {}
    for number, (what, (name, kind, target)) in enumerate(kinds.items()):
        path = stage.directory / f"hostile-{number}.tar"
        with tarfile.open(path, "w") as tar:
            good, info = tarfile.TarInfo("ca.crt"), tarfile.TarInfo(name)
            good.size, info.type, info.linkname = 1, kind, target
            tar.addfile(good, io.BytesIO(b"x"))
            tar.addfile(info)
        reasons[what] = _refusal(path, folder)
    giant = tarfile.TarInfo("agent.yaml")
    giant.size = 10**12
    path = stage.directory / "hostile-giant.tar"
    path.write_bytes(giant.tobuf() + bytes(1024))
    reasons["a terabyte"] = _refusal(path, folder)
    double = stage.directory / "hostile-double.tar"
    with tarfile.open(double, "w") as tar:
        for data in (b"a", b"b"):
            info = tarfile.TarInfo("ca.crt")
            info.size = 1
            tar.addfile(info, io.BytesIO(data))
    reasons["one name twice"] = _refusal(double, folder)
    assert not folder.exists(), "nothing is written where anything in it is wrong"
    return Seen(
        happened=f"{len(reasons)} tars, each refused whole, nothing written",
        reported=f"exit code 2 and one line, such as: {reasons['a name that climbs']}",
    )


def _refusal(path: Path, folder: Path) -> str:
    try:
        bundle.unpack_to(path, folder)
    except ConfigError as error:
        return str(error).partition(": ")[2]
    raise AssertionError(f"{path.name} was unpacked")


@row(
    "a task over the network", "calls that name a Python file as the task: unsigned, and signed with the edge's own key"
)
def task_over_the_network(stage: Stage) -> Seen:
    evil, done = stage.directory / "evil-task.py", stage.directory / "was-executed"
    evil.write_text(f"open({str(done)!r}, 'w').close()\n")
    try:
        rogue = stage.rogue(CALL_TOPIC)
        papers = stage.papers_dir(FARM)
        signer = Identity.load(papers / "node.card", papers / "node.key", papers / "fleet.pub")
        before = len(stage.notes(PI, "call_refused"))
        names = (str(evil)[-64:], "../evil-task.py", "evil-task", "os.system")
        for name in names:
            call = next_call(rogue)
            named = replace(call, plan=replace(call.plan, task=name), attempt=1, signature="")
            rogue.say(CALL_TOPIC, encode(named, FEDERATION, FARM).payload)
            seal = statements.to_text(signer.sign(statements.of_call(FEDERATION, FARM, named)))
            rogue.say(CALL_TOPIC, encode(replace(named, signature=seal), FEDERATION, FARM).payload)
        told = stage.note(PI, "call_refused", after=before + len(names) - 1)["reason"]
        stage.goes_on(4)
        assert not done.exists(), "it was executed"
    finally:
        evil.unlink()
    return Seen(
        happened="never loaded, not even at the word of the true edge: a device trains what its own YAML names",
        reported=f"unsigned: the device's journal: {told}; signed: nowhere, a call's task is a label for people",
    )


@row("log injection", "reasons with line breaks, JSON of false notes, and commands to a terminal", "m-log")
def log_injection(stage: Stage) -> Seen:
    enemy, listener = stage.enemy("m-log").join(), stage.rogue(CALL_TOPIC)
    false = '{"node": "cloud/farm-a", "event": "accepted", "sender": "cloud/farm-a/m-log"}'
    reason = f"x\n{false}\r\n\x1b[2J\x1b]0;gone\x07\u202e" + "[bold red]"
    call = next_call(listener)
    enemy.send(Decline(run=call.run, round=call.round, reason=reason))
    note = stage.note(FARM, "declined", sender=enemy.path)
    assert note["reason"] == reason, "nothing of it is lost"
    assert not stage.notes(FARM, "accepted", sender=enemy.path)
    (journal,) = {path for path in stage.journals() if "m-log" in path.read_text()}
    lines = [line for line in journal.read_text().splitlines() if "m-log" in line]
    assert all(json.loads(line)["node"] == FARM for line in lines)
    line = sentence(note)
    assert line.isprintable(), line
    enemy.say(
        f"hfl/{FEDERATION}/{enemy.path}/@/stat/state",
        json.dumps({"v": 1, "state": "ready", "boot": 1, "reason": reason}),
    )
    viewer = stage.account("viewer", FARM)
    assert viewer.tls is not None
    shown = hfl(
        *("watch", "-f", FEDERATION, "--port", str(viewer.port), "--ca", viewer.tls.ca, "--once"),
        *("--password-file", str(stage.secret_path("viewer"))),
    )
    assert shown.returncode == 0, shown.stderr
    assert "\x1b" not in shown.stdout
    assert "\u202e" not in shown.stdout
    enemy.part()
    return Seen(
        happened="one note, one line; at a terminal and in `hfl watch` control characters are made visible",
        reported=f"the edge's journal: {line.partition('  ')[2][:150]}",
    )
