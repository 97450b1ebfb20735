"""Rendering a fleet: twice changes nothing, what would be overwritten is shown first, secrets never."""

import base64
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hfl_mqtt.config.models import CloudConfig
from hfl_mqtt.config.roles import load_any
from hfl_mqtt.errors import ConfigError, HflError
from hfl_mqtt.fleet import bundle
from hfl_mqtt.fleet.authority import Authority
from hfl_mqtt.fleet.holdings import Standing
from hfl_mqtt.fleet.papers import redraw, revoke, rotate, sign
from hfl_mqtt.fleet.render import plan, render
from hfl_mqtt.fleet.requests import write_request
from hfl_mqtt.fleet.sitefile import Home, add_device, add_farm, create
from hfl_mqtt.fleet.status import status, text
from hfl_mqtt.ops.brokers import password_hash, read_passwords, secret_path
from hfl_mqtt.ops.check import check_files

PI_1 = "cloud/farm-a/pi-1"


def made(folder: Path, security: str = "mtls") -> Home:
    home = create(folder, "orchard", cloud_host="cloud.example", security=security)
    if security == "mtls":
        Authority.create(home.authority(home.load()), "orchard")
    add_farm(home, "farm-a", devices=["pi-1", "pi-2"])
    return home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return made(tmp_path / "orchard")


def add_sensors(home: Home) -> None:
    edit = "- name: farm-a\n    sensors: [sensors/#]\n    sensor_accounts: [field-1]\n"
    home.site_file.write_text(home.site_file.read_text().replace("- name: farm-a\n", edit))


def never(_diff: str) -> bool:
    raise AssertionError("nothing is to be overwritten")


def yes(_diff: str) -> bool:
    return True


def files_of(home: Home) -> dict[str, bytes]:
    return {
        path.relative_to(home.folder).as_posix(): path.read_bytes() for path in home.folder.rglob("*") if path.is_file()
    }


def asked(home: Home) -> str:
    """What a person is shown; nothing is written."""
    shown: list[str] = []

    def note(diff: str) -> bool:
        shown.append(diff)
        return False

    before = files_of(home)
    with pytest.raises(ConfigError, match="nothing was written"):
        render(home, confirm=note)
    assert files_of(home) == before
    return shown[0]


class TestRendering:
    def test_twice_changes_nothing(self, home: Home) -> None:
        _, changed = render(home, confirm=never)
        assert changed
        before = files_of(home)
        assert render(home, confirm=never)[1] == []
        assert files_of(home) == before

    def test_gives_every_node_a_bundle_of_what_lies_in_its_folder(self, home: Home) -> None:
        render(home, confirm=never)
        for path in ("cloud", "cloud/farm-a", PI_1):
            packed = bundle.read(home.bundle(path))
            assert set(packed) == set(bundle.NAMES) - {"password"}
            assert packed == {name: (home.node(path) / name).read_bytes() for name in packed}

    def test_gives_agents_that_load(self, home: Home) -> None:
        render(home, confirm=never)
        roles = {file.parent.name: type(load_any(file)).__name__ for file in home.folder.glob("nodes/*/agent.yaml")}
        assert roles == {
            "cloud": "CloudConfig",
            "cloud.farm-a": "EdgeConfig",
            "cloud.farm-a.pi-1": "ClientConfig",
            "cloud.farm-a.pi-2": "ClientConfig",
        }

    def test_keeps_every_file_for_its_owner_only(self, home: Home) -> None:
        render(home, confirm=never)
        for path in home.folder.rglob("*"):
            if path.is_file() and path != home.site_file:
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path

    def test_a_device_more_leaves_all_other_papers_as_they_are(self, home: Home) -> None:
        render(home, confirm=never)
        before = files_of(home)
        add_device(home, "pi-3", farm="farm-a")
        render(home, confirm=yes)
        after = files_of(home)
        changed = {name for name in before if after[name] != before[name]}
        assert changed == {"site.yaml", "authority/issued.json", "brokers/farm-a/acl"}
        assert "bundles/cloud.farm-a.pi-3.tar" in after

    def test_of_a_lab_has_passwords_and_no_papers(self, tmp_path: Path) -> None:
        home = made(tmp_path / "lab", "passwords")
        render(home, confirm=never)
        assert set(bundle.read(home.bundle(PI_1))) == {"agent.yaml", "password", "hfl.service"}
        assert not home.authority(home.load()).exists()
        assert load_any(home.node(PI_1) / "agent.yaml")
        assert render(home, confirm=never)[1] == []

    def test_tells_of_its_agents_what_check_tells_with_line_and_column(
        self, home: Home, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = home.site_file.read_text().replace("rounds: 5", "rounds: five").replace("learning_rate", "learnig_rate")
        home.site_file.write_text(text.replace("soil-moisture", "soil-moistur"))
        with pytest.raises(ConfigError) as raised:
            plan(home)
        assert check_files([home.site_file], as_json=False) == 2
        assert capsys.readouterr().err == f"{raised.value}\n"
        told = [line.removeprefix(f"{home.site_file}:").partition(": ")[0] for line in str(raised.value).splitlines()]
        assert [line.partition(" ")[2] for line in told] == [
            "agents.task.name",
            "agents.cloud.rounds",
            "agents.cloud.plan.learnig_rate",
        ]
        assert all(re.match(r"\d+:\d+ ", line) for line in told)

    def test_of_a_cloud_that_waits_for_all_its_farms_may_ask_for_as_many(self, home: Home) -> None:
        add_farm(home, "farm-b", devices=["pi-1"])
        text = home.site_file.read_text().replace("    rounds: 5\n", "    rounds: 5\n    tiers: [{quorum: 2}, {}]\n")
        home.site_file.write_text(text)
        assert check_files([home.site_file], as_json=False) == 0
        render(home, confirm=never)
        cloud = load_any(home.node("cloud") / "agent.yaml")
        assert isinstance(cloud, CloudConfig)
        assert (cloud.tiers[0].quorum, cloud.wait_for) == (2, 2)
        home.site_file.write_text(text.replace("quorum: 2", "quorum: 3"))
        with pytest.raises(ConfigError, match="3 children must answer, but the first round starts with 2"):
            plan(home)

    def test_leaves_files_on_boards_to_the_boards(self, home: Home) -> None:
        task = "task: {file: /opt/tasks/soil.py}"
        tls = "client: {homes: [{name: cloud/lab/pi-1, broker: {host: lab, tls: {ca_file: /opt/lab.crt}}}]}"
        text = home.site_file.read_text().replace("task: {name: soil-moisture}", f"{task}\n  {tls}")
        home.site_file.write_text(text)
        assert check_files([home.site_file], as_json=False) == 0
        render(home, confirm=never)
        assert "file: /opt/tasks/soil.py" in (home.node(PI_1) / "agent.yaml").read_text()

    def test_stops_where_the_authority_is_another_federations(self, home: Home) -> None:
        home.site_file.write_text(home.site_file.read_text().replace("federation: orchard", "federation: other"))
        with pytest.raises(ConfigError, match=r"the federation is other, and the authority in .* is that of orchard"):
            plan(home)

    def test_without_the_authoritys_folder_says_where_it_should_be(self, home: Home) -> None:
        home.authority(home.load()).rename(home.folder / "elsewhere")
        with pytest.raises(ConfigError, match="authority"):
            plan(home)
        home.site_file.write_text(home.site_file.read_text() + "authority: elsewhere\n")
        render(home, confirm=never)


class TestOverwriting:
    def test_shows_what_changes_and_writes_nothing_when_refused(self, home: Home) -> None:
        render(home, confirm=never)
        add_device(home, "pi-3", farm="farm-a")
        shown = asked(home)
        assert "+++ brokers/farm-a/acl (rendered)" in shown
        assert "+user cloud/farm-a/pi-3" in shown
        assert Authority.open(home.authority(home.load())).issued[-1].path != "cloud/farm-a/pi-3"

    def test_shows_what_a_person_has_edited_by_hand(self, home: Home) -> None:
        render(home, confirm=never)
        acl = home.broker("farm-a") / "acl"
        acl.write_text(acl.read_text() + "topic readwrite #\n")
        assert "-topic readwrite #" in asked(home)

    @pytest.mark.parametrize("security", ["mtls", "passwords"])
    def test_never_shows_a_secret(self, tmp_path: Path, security: str) -> None:
        home = made(tmp_path / "fleet", security)
        render(home, confirm=never)
        secrets = [line.split()[-1] for line in (home.folder / "passwords.yaml").read_text().splitlines()[1:]]
        secrets += [line for key in home.folder.rglob("*.key") for line in key.read_text().splitlines()[1:-1]]
        confs = [file.read_text() for file in home.folder.rglob("mosquitto.conf")]
        ids = [line for conf in confs for line in conf.splitlines() if line.startswith("remote_clientid ")]
        secrets += [line.partition("~")[2] for line in ids]
        assert len(ids) >= 1
        assert all(secrets)
        for file in home.folder.rglob("*"):
            is_rendered = file.is_file() and file.parent.name != "authority" and file.suffix not in (".crt", ".tar")
            if is_rendered and file.name not in ("site.yaml", "passwords.yaml"):
                file.write_text("other\n")
        (home.folder / "passwords.yaml").unlink()
        shown = asked(home)
        assert not any(secret in shown for secret in secrets)

    def test_tells_of_many_files_alike_in_one_line(self, home: Home) -> None:
        add_farm(home, "farm-b", devices=["pi-1"])
        render(home, confirm=never)
        revoke(home, PI_1)
        told = [line for line in asked(home).splitlines() if line.endswith(("changes", "folders"))]
        assert told == [
            "brokers/cloud/crl.pem changes",
            "brokers/farm-a/crl.pem changes",
            "brokers/farm-b/crl.pem changes",
            "revoked changes in 5 folders",
        ]

    def test_a_changed_password_is_said_and_not_shown(self, tmp_path: Path) -> None:
        home = made(tmp_path / "lab", "passwords")
        render(home, confirm=never)
        conf = home.broker("farm-a") / "mosquitto.conf"
        old = next(line for line in conf.read_text().splitlines() if line.startswith("remote_password"))
        conf.write_text(conf.read_text().replace(old, "remote_password something-else"))
        shown = asked(home)
        assert shown == "brokers/farm-a/mosquitto.conf changes\n"

    def test_a_broker_that_has_moved_gets_another_certificate_once_asked(self, home: Home) -> None:
        render(home, confirm=never)
        home.site_file.write_text(home.site_file.read_text().replace("cloud.example", "10.0.0.1"))
        shown = asked(home)
        assert "brokers/cloud: the broker's certificate is moved: a new one, new key" in shown
        assert "+address 10.0.0.1:8884" in shown
        _, changed = render(home, confirm=yes)
        assert "brokers/cloud/: papers of the broker" in changed
        assert render(home, confirm=never)[1] == []


class TestPapers:
    def standing(self, home: Home, path: str, kind: str = "node") -> Standing:
        return next(one.standing for one in plan(home).held if (one.path, one.kind) == (path, kind))

    def test_that_were_lost_are_issued_again(self, home: Home) -> None:
        render(home, confirm=never)
        (home.node(PI_1) / "node.crt").unlink()
        assert self.standing(home, PI_1) is Standing.MISSING
        assert asked(home) == "nodes/cloud.farm-a.pi-1: the node's certificate is missing: a new one, new key\n"
        render(home, confirm=yes)
        assert self.standing(home, PI_1) is Standing.GOOD

    def test_whose_key_was_handed_out_and_deleted_stay_good(self, home: Home) -> None:
        render(home, confirm=never)
        (home.node(PI_1) / "node.key").unlink()
        assert self.standing(home, PI_1) is Standing.GOOD

    def test_revoked_take_the_rights_and_come_back_only_when_asked_for(self, home: Home) -> None:
        render(home, confirm=never)
        gone = revoke(home, "farm-a/pi-1")
        assert [one.subject for one in gone] == [PI_1]
        render(home, confirm=yes)
        assert f"user {PI_1}\n" not in (home.broker("farm-a") / "acl").read_text()
        assert gone[0].serial in _revoked(home, "cloud")
        assert self.standing(home, PI_1) is Standing.REVOKED
        assert render(home, confirm=never)[1] == []
        assert rotate(home, PI_1, days=100, confirm=yes) == [PI_1]
        render(home, confirm=yes)
        assert f"user {PI_1}\n" in (home.broker("farm-a") / "acl").read_text()
        assert self.standing(home, PI_1) is Standing.GOOD

    def test_of_a_farm_are_its_edges_its_brokers_and_its_bridges(self, home: Home) -> None:
        render(home, confirm=never)
        assert {one.kind for one in revoke(home, "cloud/farm-a")} == {"node", "bridge", "broker"}
        render(home, confirm=yes)
        assert "_bridge/cloud/farm-a" not in (home.broker("cloud") / "acl").read_text()

    def test_are_renewed_for_all_but_those_who_were_shut_out(self, home: Home) -> None:
        render(home, confirm=never)
        revoke(home, PI_1)
        assert PI_1 not in rotate(home, None, days=100, confirm=yes)
        render(home, confirm=yes)
        assert {one.standing for one in plan(home).held} == {Standing.GOOD, Standing.REVOKED}

    def test_are_not_renewed_when_refused(self, home: Home) -> None:
        render(home, confirm=never)
        before = files_of(home)
        with pytest.raises(ConfigError, match="nothing was issued"):
            rotate(home, PI_1, days=100, confirm=lambda told: told != f"{PI_1}: new papers and a new key\n")
        assert files_of(home) == before

    def test_of_people_are_a_password_which_is_drawn_anew_and_the_old_one_is_nowhere(self, home: Home) -> None:
        add_sensors(home)
        render(home, confirm=never)
        before = files_of(home)
        old = secret_path(home.folder, "viewer").read_text().strip()
        redraw(home, "viewer", confirm=yes)
        shown = asked(home)
        render(home, confirm=yes)
        new = secret_path(home.folder, "viewer").read_text().strip()
        assert new != old
        after = files_of(home)
        assert {name for name in after if before.get(name) != after[name]} == {
            "passwords.yaml",
            "secrets/viewer",
            "brokers/cloud/passwd",
            "brokers/farm-a/passwd",
        }
        assert not [name for name, data in after.items() if old.encode() in data]
        assert old not in shown
        assert new not in shown
        for broker in ("cloud", "farm-a"):
            hashes = dict(line.split(":") for line in (home.broker(broker) / "passwd").read_text().splitlines())
            salt = base64.b64decode(hashes["viewer"].split("$")[3])
            assert hashes["viewer"] == password_hash(new, salt)
        assert render(home, confirm=never)[1] == []

    def test_of_sensors_are_a_password_too_and_of_a_lab_only_those_of_people(self, home: Home, tmp_path: Path) -> None:
        add_sensors(home)
        render(home, confirm=never)
        old = secret_path(home.folder, "field-1").read_text()
        redraw(home, "field-1", confirm=yes)
        render(home, confirm=yes)
        assert secret_path(home.folder, "field-1").read_text() != old
        lab = made(tmp_path / "lab", "passwords")
        render(lab, confirm=never)
        before = read_passwords(lab.load(), lab.folder)
        redraw(lab, "viewer", confirm=yes)
        now = read_passwords(lab.load(), lab.folder)
        assert {name for name in now if now[name] != before[name]} == {"viewer"}

    def test_of_people_stay_when_refused(self, home: Home) -> None:
        render(home, confirm=never)
        before = files_of(home)
        with pytest.raises(ConfigError, match="nothing was drawn"):
            redraw(home, "viewer", confirm=lambda told: not told.startswith("viewer: a new password"))
        assert files_of(home) == before

    def test_of_nobody_cannot_be_revoked(self, home: Home) -> None:
        render(home, confirm=never)
        with pytest.raises(ConfigError, match=r"has no papers; did you mean cloud/farm-a/pi-\d\?"):
            revoke(home, "cloud/farm-a/pi-9")
        with pytest.raises(ConfigError, match=r"is no node of .* that has papers; did you mean cloud/farm-a\?"):
            rotate(home, "farm-b", days=100, confirm=yes)
        with pytest.raises(ConfigError, match=r"that has papers; did you mean viewer\?"):
            rotate(home, "viewr", days=100, confirm=yes)
        with pytest.raises(ConfigError, match="has no papers but the newest that are good"):
            revoke(home, PI_1, keep_newest=True)

    def test_of_a_device_that_keeps_its_key_are_given_when_it_asks(self, home: Home, tmp_path: Path) -> None:
        path = "cloud/farm-a/own"
        add_device(home, "own", farm="farm-a", keeps_key=True)
        render(home, confirm=never)
        assert self.standing(home, path) is Standing.AWAITED
        assert not home.bundle(path).exists()
        request = write_request("orchard", path, tmp_path / "board")
        assert sign(home, request, days=100) == path
        render(home, confirm=yes)
        assert self.standing(home, path) is Standing.GOOD
        assert "node.key" not in bundle.read(home.bundle(path))
        # Renewed, it is the same key: nobody has another one.
        card = (home.node(path) / "node.card").read_text()
        assert rotate(home, path, days=200, confirm=yes) == [path]
        assert (home.node(path) / "node.card").read_text() != card
        assert not (home.node(path) / "node.key").exists()

    def test_are_not_given_to_who_is_not_expected(self, home: Home, tmp_path: Path) -> None:
        render(home, confirm=never)
        request = write_request("orchard", PI_1, tmp_path / "board")
        with pytest.raises(ConfigError, match="is no device with a key of its own"):
            sign(home, request, days=100)


class TestStatus:
    def test_of_a_fresh_fleet_says_to_render_and_then_that_all_is_well(self, home: Home) -> None:
        assert not status(home).is_in_order
        assert "hfl fleet render" in text(status(home))
        render(home, confirm=never)
        found = status(home)
        assert found.is_in_order
        assert "7 good" in text(found)
        assert min(line.days_left or 0 for line in found.lines) == 729

    def test_names_who_must_be_renewed_soon(self, home: Home) -> None:
        render(home, confirm=never)
        rotate(home, PI_1, days=30, confirm=yes)
        render(home, confirm=yes)
        found = [line for line in status(home).lines if line.remedy]
        assert [(line.holding.path, line.days_left, line.remedy) for line in found] == [
            (PI_1, 29, f"hfl fleet rotate {PI_1}")
        ]

    def test_names_who_left_the_site_and_still_has_papers(self, home: Home) -> None:
        render(home, confirm=never)
        text_ = home.site_file.read_text().replace("[pi-1, pi-2]", "[pi-1]")
        home.site_file.write_text("".join(line for line in text_.splitlines(True) if "pi-2" not in line))
        assert status(home).left_behind == ("cloud/farm-a/pi-2",)
        assert (
            "cloud/farm-a/pi-2: its papers are good and it is not in the site -> hfl fleet revoke cloud/farm-a/pi-2"
            in (text(status(home)))
        )

    def test_names_files_that_are_not_as_the_site_says(self, home: Home) -> None:
        render(home, confirm=never)
        (home.broker("farm-a") / "acl").write_text("topic readwrite #\n")
        home.bundle(PI_1).unlink()
        assert status(home).drift == ("brokers/farm-a/acl", "bundles/cloud.farm-a.pi-1.tar")

    def test_holds_no_secret(self, home: Home) -> None:
        render(home, confirm=never)
        shown = repr(status(home)) + str(status(home).as_json()) + repr(plan(home))
        for key in home.folder.rglob("*.key"):
            assert not any(line in shown for line in key.read_text().splitlines()[1:-1])
        assert (home.folder / "secrets" / "viewer").read_text().strip() not in shown


def test_a_cut_while_papers_are_put_down_is_made_good(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    render(home, confirm=never)
    real: Callable[..., int] = os.open

    def cut(path: os.PathLike[str] | str, *rest: int) -> int:
        if str(path).endswith(".node.crt.tmp"):
            raise OSError(28, "No space left on device")
        return real(path, *rest)

    monkeypatch.setattr(os, "open", cut)
    with pytest.raises(HflError, match="space"):
        rotate(home, PI_1, days=100, confirm=yes)
    monkeypatch.undo()
    render(home, confirm=yes)
    assert load_any(home.node(PI_1) / "agent.yaml")
    assert status(home).is_in_order


def _revoked(home: Home, broker: str) -> set[str]:
    from cryptography import x509

    crl = x509.load_pem_x509_crl((home.broker(broker) / "crl.pem").read_bytes())
    return {str(entry.serial_number) for entry in crl}
