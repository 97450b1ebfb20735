"""install.sh into a plain folder that stands for a card: every step but users, packages and systemd."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from hfl_mqtt.fleet.unit import unit
from hfl_mqtt.trust.cards import Revoked, sign_revoked
from hfl_mqtt.trust.keys import PrivateKey
from tests.install import papers

SCRIPT = Path(__file__).resolve().parents[2] / "device_agents" / "install.sh"
UNIT = "etc/systemd/system/hfl.service"


@pytest.fixture
def card(tmp_path: Path) -> Path:
    root = tmp_path / "card"
    root.mkdir()
    return root


def script(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


def install(card: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Install with this very environment, which has the program."""
    return script("--root", card, "--venv", sys.prefix, *arguments)


def tree(card: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return all that is there: mode, time of change, content or target."""
    found = {}
    for path in sorted(card.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            content = bytes(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        else:
            content = b""
        found[path.relative_to(card).as_posix()] = (stat.S_IMODE(status.st_mode), status.st_mtime_ns, content)
    return found


def test_all_stands_in_its_place_with_the_rights_it_should_have(card: Path, tmp_path: Path) -> None:
    done = install(card, "--bundle", papers.make(tmp_path / "pi-1.tar", node_key=b"secret"))
    assert (done.returncode, done.stderr) == (0, "")
    there = tree(card)
    assert there["etc/hfl-mqtt"][0] == 0o750
    assert there["etc/hfl-mqtt/node.key"][::2] == (0o640, b"secret")
    assert there["etc/hfl-mqtt/agent.yaml"][::2] == (0o640, papers.CLIENT.encode())
    assert there["var/lib/hfl-mqtt"][0] == 0o700
    assert there[UNIT][::2] == (0o644, unit("client").encode())
    assert there["etc/systemd/system/multi-user.target.wants/hfl.service"][2] == b"/etc/systemd/system/hfl.service"
    assert there["opt/hfl-mqtt/venv"][2] == sys.prefix.encode()
    assert "systemd does not run here: the service starts with the next boot" in done.stdout


def test_nothing_is_imported_from_the_folder_where_it_is_started(card: Path, tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    bundle = papers.make(downloads / "pi-1.tar")
    for name in ("hfl_mqtt", "device_agents", "yaml", "tarfile", "venv", "ensurepip"):
        (downloads / f"{name}.py").write_text(f"open({str(tmp_path / 'evil')!r}, 'a').write(__name__)\n")
    done = script("--root", card, "--venv", sys.prefix, "--bundle", bundle.name, cwd=downloads)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "evil").exists()


def test_a_second_run_changes_nothing_and_says_so(card: Path, tmp_path: Path) -> None:
    bundle = papers.make(tmp_path / "pi-1.tar")
    assert "7 changed" in install(card, "--bundle", bundle).stdout
    before = tree(card)
    again = install(card, "--bundle", bundle)
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "nothing changed")
    assert install(card).stdout.splitlines()[-1] == "nothing changed"  # the papers may be gone by now
    assert tree(card) == before


def test_a_link_that_an_earlier_start_left_half_made_is_not_taken_for_the_new_one(card: Path, tmp_path: Path) -> None:
    half_made = card / "opt/hfl-mqtt/venv.new"
    half_made.parent.mkdir(parents=True)
    half_made.symlink_to("nowhere")
    papers.make(tmp_path / "pi-1.tar")
    done = install(card, "--bundle", tmp_path / "pi-1.tar")
    assert done.returncode == 0, done.stderr
    assert (card / "opt/hfl-mqtt/venv").resolve() != (card / "opt/hfl-mqtt/nowhere")
    assert not half_made.is_symlink()


def test_other_papers_change_only_what_differs(card: Path, tmp_path: Path) -> None:
    install(card, "--bundle", papers.make(tmp_path / "pi-1.tar", node_key=b"secret"))
    changed = papers.CLIENT.replace("farm-a.local", "10.0.0.7")
    done = install(card, "--bundle", papers.make(tmp_path / "pi-1.tar", changed, node_key=b"secret"))
    assert [line for line in done.stdout.splitlines() if line.startswith("  wrote")] == [
        "  wrote /etc/hfl-mqtt/agent.yaml"
    ]


def test_what_was_tampered_with_is_put_right(card: Path, tmp_path: Path) -> None:
    bundle = papers.make(tmp_path / "pi-1.tar", node_key=b"secret")
    install(card, "--bundle", bundle)
    (card / "etc/hfl-mqtt/node.key").chmod(0o644)
    (card / UNIT).write_text("[Service]\nUser=root\n")
    done = install(card, "--bundle", bundle)
    assert {"  wrote /etc/hfl-mqtt/node.key", f"  wrote /{UNIT}"} <= set(done.stdout.splitlines())
    assert tree(card)["etc/hfl-mqtt/node.key"][0] == 0o640
    assert (card / UNIT).read_text() == unit("client")


def test_the_unit_is_the_programs_own_and_not_one_out_of_a_tar(card: Path, tmp_path: Path) -> None:
    bundle = papers.make(tmp_path / "pi-1.tar", hfl_service=b"[Service]\nUser=root\nExecStart=/bin/evil\n")
    assert install(card, "--bundle", bundle).returncode == 0
    assert (card / UNIT).read_text() == unit("client")
    assert not (card / "etc/hfl-mqtt/hfl.service").exists()


def test_a_device_that_keeps_its_own_key_keeps_it(card: Path, tmp_path: Path) -> None:
    done = install(card, "--bundle", papers.make(tmp_path / "pi-1.tar", node_crt=b"certificate"))
    assert "no key yet: make it here by hfl device request" in done.stdout
    (card / "etc/hfl-mqtt/node.key").write_bytes(b"my own")
    (card / "etc/hfl-mqtt/node.key").chmod(0o600)
    done = install(card, "--bundle", papers.make(tmp_path / "pi-1.tar", node_crt=b"certificate"))
    assert "no key yet" not in done.stdout
    assert tree(card)["etc/hfl-mqtt/node.key"][::2] == (0o640, b"my own")


FLEET = PrivateKey(bytes(32))


def signed(number: int, *serials: str, by: PrivateKey = FLEET) -> bytes:
    revoked = Revoked(federation="fed1", number=number, serials=frozenset(serials))
    return sign_revoked(revoked, by).encode() + b"\n"


def test_another_fleet_takes_a_board_over_only_where_that_is_said(card: Path, tmp_path: Path) -> None:
    ours = papers.make(tmp_path / "ours.tar", fleet_pub=FLEET.public.encode(), revoked=signed(7))
    assert install(card, "--bundle", ours).returncode == 0
    before = tree(card)
    stranger = papers.make(tmp_path / "stranger.tar", fleet_pub=b"ab" * 32)
    for bundle in (stranger, papers.make(tmp_path / "plain.tar")):
        done = install(card, "--bundle", bundle)
        assert done.returncode == 5
        assert "--new-fleet" in done.stderr
        assert str(tmp_path) not in done.stderr
        assert tree(card) == before
    other = PrivateKey(b"s" * 32)
    theirs = papers.make(tmp_path / "theirs.tar", fleet_pub=other.public.encode(), revoked=signed(1, by=other))
    assert install(card, "--bundle", theirs, "--new-fleet").returncode == 0
    assert tree(card)["etc/hfl-mqtt/fleet.pub"][2] == other.public.encode()
    assert tree(card)["etc/hfl-mqtt/revoked"][2] == signed(1, by=other)
    assert install(card, "--bundle", theirs).stdout.splitlines()[-1] == "nothing changed"


def test_a_new_fleet_that_signs_nothing_leaves_no_key_of_the_old_one(card: Path, tmp_path: Path) -> None:
    install(card, "--bundle", papers.make(tmp_path / "ours.tar", fleet_pub=FLEET.public.encode(), revoked=signed(7)))
    plain = papers.make(tmp_path / "plain.tar")
    assert install(card, "--bundle", plain, "--new-fleet").returncode == 0
    assert sorted(path.name for path in (card / "etc/hfl-mqtt").iterdir()) == ["agent.yaml"]
    assert install(card, "--bundle", plain).stdout.splitlines()[-1] == "nothing changed"


def test_an_older_list_of_revoked_cards_replaces_no_newer_one(card: Path, tmp_path: Path) -> None:
    def bundle(revoked: bytes) -> Path:
        return papers.make(tmp_path / "pi-1.tar", fleet_pub=FLEET.public.encode(), revoked=revoked)

    install(card, "--bundle", bundle(signed(7, "41")))
    done = install(card, "--bundle", bundle(signed(6)))
    assert done.returncode == 0
    assert "kept list 7 of revoked cards, for the bundle's is list 6" in done.stdout
    assert tree(card)["etc/hfl-mqtt/revoked"][2] == signed(7, "41")
    assert install(card, "--bundle", bundle(signed(8, "41", "42"))).returncode == 0
    assert tree(card)["etc/hfl-mqtt/revoked"][2] == signed(8, "41", "42")
    forged = install(card, "--bundle", bundle(signed(9, by=PrivateKey(b"s" * 32))))
    assert (forged.returncode, "not signed by our fleet's key" in forged.stderr) == (5, True)


def test_an_edge_gets_an_edges_unit(card: Path, tmp_path: Path) -> None:
    install(card, "--bundle", papers.make(tmp_path / "farm-a.tar", papers.EDGE))
    assert (card / UNIT).read_text() == unit("edge")


def test_a_jetson_gets_its_gpus_device_files(card: Path, tmp_path: Path) -> None:
    (card / "etc").mkdir()
    (card / "etc/nv_tegra_release").write_text("# R36\n")
    install(card, "--bundle", papers.make(tmp_path / "jetson.tar"))
    assert "SupplementaryGroups=video render" in (card / f"{UNIT}.d/50-board.conf").read_text()
    assert script("--root", card, "--uninstall").returncode == 0
    assert not (card / f"{UNIT}.d").exists()


def test_without_papers_it_says_what_is_missing(card: Path) -> None:
    done = install(card, "--role", "cloud")
    assert done.returncode == 0
    assert "no papers yet" in done.stdout
    assert (card / UNIT).read_text() == unit("cloud")


def test_uninstalling_leaves_papers_and_state_and_purging_nothing(card: Path, tmp_path: Path) -> None:
    install(card, "--bundle", papers.make(tmp_path / "pi-1.tar"))
    done = script("--root", card, "--uninstall")
    assert done.returncode == 0
    assert "kept /etc/hfl-mqtt; --purge removes it" in done.stdout
    assert (card / "etc/hfl-mqtt/agent.yaml").exists()
    assert not (card / "opt/hfl-mqtt").exists()
    assert not (card / UNIT).exists()
    assert Path(sys.prefix, "bin", "python").exists()  # an environment that was only lent
    assert script("--root", card, "--purge").returncode == 0
    left = [path for path in card.rglob("*") if "hfl" in path.name]
    assert left == []
    assert script("--root", card, "--purge").stdout == "nothing changed\n"


def test_what_people_put_beside_the_program_stays(card: Path, tmp_path: Path) -> None:
    install(card, "--bundle", papers.make(tmp_path / "pi-1.tar"))
    (card / "opt/hfl-mqtt/notes.txt").write_text("mine")
    script("--root", card, "--purge")
    assert (card / "opt/hfl-mqtt/notes.txt").exists()


# ------------------------------------------------------------------ refusals, each with its exit code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--role", "toaster"], "--role must be client, edge or cloud, got toaster"),
        (["--bundle", "/none.tar"], "no such bundle: /none.tar"),
        (["--frobnicate"], "unknown option --frobnicate"),
        (["--bundle"], "--bundle needs a value"),
        (["--source", ".", "--wheel", "x"], "--source and --wheel: give one of them"),
        (["--venv", "/none"], "no Python environment: /none"),
    ],
)
def test_wrong_usage_is_said_and_nothing_done(card: Path, arguments: list[str], said: str) -> None:
    done = script("--root", card, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert tree(card) == {}


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to stop being it")
def test_without_root_it_says_so() -> None:
    # Given on stdin, for another user need not be able to read the repository.
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-s", "--", "--uninstall"]
    with SCRIPT.open() as text:
        done = subprocess.run(command, stdin=text, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert (done.returncode, done.stdout) == (3, "")
    assert "needs root" in done.stderr


def test_a_python_that_is_too_old_is_refused(card: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.10 && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = script("--root", card, "--python", old)
    assert done.returncode == 4
    assert "Python 3.8.10 is too old, 3.10 is the oldest" in done.stderr


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as out:
        for info, data in members:
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def link(name: str, to: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, to
    return info


@pytest.mark.parametrize(
    "member",
    [tarfile.TarInfo("../../evil"), tarfile.TarInfo("/etc/passwd"), link("node.key", "/etc/shadow")],
    ids=["upwards", "absolute", "link"],
)
def test_a_hostile_bundle_is_refused_whole(card: Path, tmp_path: Path, member: tarfile.TarInfo) -> None:
    agent = tarfile.TarInfo("agent.yaml")
    bundle = tar(tmp_path / "evil.tar", (agent, papers.CLIENT.encode()), (member, b""))
    done = install(card, "--bundle", bundle)
    assert done.returncode == 5
    assert "the bundle cannot be used" in done.stderr
    assert list((card / "etc/hfl-mqtt").iterdir()) == []
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        (papers.CLIENT.replace("task:", "tsak:"), "agent.yaml cannot be used"),
        (papers.CLIENT.replace("role: client", "role: demo"), "agent.yaml is for 'demo'"),
        (papers.EDGE, "agent.yaml is for the role edge, --role says client"),
    ],
)
def test_papers_that_do_not_fit_are_refused_before_any_is_written(
    card: Path, tmp_path: Path, agent: str, said: str
) -> None:
    bundle = papers.make(tmp_path / "good.tar")
    install(card, "--bundle", bundle)
    before = tree(card)
    done = install(card, "--role", "client", "--bundle", papers.make(tmp_path / "bad.tar", agent))
    assert done.returncode == 5
    assert said in done.stderr
    assert str(tmp_path) not in done.stderr
    assert tree(card) == before
