"""A site file becomes configurations, rights and passwords, the same every time."""

from __future__ import annotations

import base64
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from hfl_mqtt.config.roles import load_any
from hfl_mqtt.config.site import Site, bridge_account
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.ops.brokers import (
    INSTALLED,
    Layout,
    password_hash,
    render,
    render_example,
    render_to,
    secret_path,
)
from hfl_mqtt.protocol import topics

PASSWORD = "placeholder"
EXAMPLE = Path(__file__).resolve().parents[3] / "brokers"


def site(**changes: Any) -> Site:
    fields = {
        "federation": "fed1",
        "cloud": {"host": "cloud.example"},
        "farms": [{"name": "farm-a", "devices": ["pi-1", "pi-2"]}, {"name": "farm-b", "devices": ["pi-1"]}],
    }
    return Site.model_validate(fields | changes)


def region_site() -> Site:
    below = [{"name": "farm-a", "devices": ["pi-1"]}]
    return site(farms=[{"name": "north", "host": "north.example", "port": 1884, "farms": below}])


def rendered(one: Site, path: str) -> str:
    files = {file.path: file.content for file in render(one, dict.fromkeys(one.accounts(), "placeholder"))}
    return files[path]


def lines_after(text: str, head: str) -> list[str]:
    """The lines behind `head`, until one of another kind."""
    lines = text.splitlines()
    start = lines.index(head) + 1
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("topic ")), len(lines))
    return lines[start:end]


@pytest.mark.parametrize("folder", [EXAMPLE, EXAMPLE / "locked"], ids=["passwords", "locked"])
class TestTheCommittedExample:
    def test_is_what_its_site_file_gives_byte_for_byte(self, folder: Path) -> None:
        example = load_any(folder / "site.yaml")
        assert isinstance(example, Site)
        files = {file.path: file.content for file in render_example(example)}
        brokers = {folder / Path(name).parent for name in files}
        committed = {
            path.relative_to(folder).as_posix(): path.read_text() for broker in brokers for path in broker.iterdir()
        }
        assert committed == files

    def test_holds_no_secret_and_no_hash(self, folder: Path) -> None:
        texts = [path.read_text() for path in folder.glob("*/mosquitto.conf")]
        assert len(texts) > 1
        lines = [line for text in texts for line in text.splitlines() if line.startswith("remote_password")]
        assert set(lines) <= {"remote_password CHANGE-ME"}
        assert not [*folder.rglob("passwd"), *folder.rglob("*.key")]


class TestConfigurations:
    def test_have_no_comment_behind_a_setting(self) -> None:
        for broker in ("cloud", "farm-a"):
            for line in rendered(site(), f"{broker}/mosquitto.conf").splitlines():
                # `#` as a wildcard ends a pattern; anywhere else in a setting Mosquitto would take it for a value.
                assert line.startswith("#") or " #" not in line

    def test_the_cloud_has_no_bridge_and_a_farm_has_two(self) -> None:
        assert "connection " not in rendered(site(), "cloud/mosquitto.conf")
        farm = rendered(site(), "farm-a/mosquitto.conf")
        assert [line for line in farm.splitlines() if line.startswith("connection ")] == [
            "connection farm-a-ctl",
            "connection farm-a-data",
        ]

    def test_the_bridges_carry_what_topics_says_and_nothing_twice(self) -> None:
        carried = [line for line in rendered(site(), "farm-a/mosquitto.conf").splitlines() if line.startswith("topic ")]
        ways = topics.bridge_control("fed1", "cloud/farm-a") + topics.bridge_data("fed1", "cloud/farm-a")
        echo = f"topic {topics.bridge_echo('fed1', 'cloud/farm-a')}"
        assert carried == [*(f"topic {pattern} {direction} {qos}" for pattern, direction, qos in ways), echo]
        assert len(set(carried)) == len(carried)

    def test_what_comes_in_retained_comes_at_qos_0_and_what_is_addressed_at_qos_1(self) -> None:
        # A PUBACK on the way up would hold an update back for 40 ms, and a cut link would queue obsolete models.
        carried = [line for line in rendered(site(), "farm-a/mosquitto.conf").splitlines() if line.startswith("topic ")]
        assert [line for line in carried if " in " in line] == [
            "topic hfl/fed1/cloud/@/stat/round in 0",
            "topic hfl/fed1/cloud/@/stat/state in 0",
            "topic hfl/fed1/cloud/@/stat/identity in 0",
            "topic hfl/fed1/cloud/farm-a/@/cmnd/# in 1",
            "topic hflb/fed1/cloud/@/down/# in 0",
            "topic hflb/fed1/cloud/@/key/# in 0",
        ]

    def test_what_goes_out_is_a_farms_word_to_the_cloud_and_how_everybody_below_is(self) -> None:
        conf = rendered(region_site(), "north-farm-a/mosquitto.conf")
        own = "hfl/fed1/cloud/north/farm-a"
        below = [f"{own}{'/+' * level}/@/stat/{what}" for level in range(1, 6) for what in ("state", "info")]
        assert [line for line in conf.splitlines() if line.startswith("topic ") and " out " in line] == [
            f"topic {own}/@/stat/state out 1",
            f"topic {own}/@/stat/info out 1",
            f"topic {own}/@/stat/metrics out 1",
            f"topic {own}/@/stat/identity out 1",
            f"topic {own}/@/stat/quarantine out 1",
            *(f"topic {pattern} out 1" for pattern in below),
            *(f"topic {own}/@/tele/{name} out 1" for name in ("update", "decline", "resend", "moving")),
            *(f"topic hflb/fed1/cloud/north/farm-a/@/up/{slot} out 1" for slot in range(4)),
            f"topic doctor/echo out 1 {own}/@/stat/ {own}/@/cmnd/",
        ]

    def test_the_metrics_of_devices_cross_only_where_the_site_says_so(self) -> None:
        metrics = "topic hfl/fed1/cloud/farm-a/+/@/stat/metrics out 1"
        plain, wanted = (rendered(site(device_metrics=one), "farm-a/mosquitto.conf") for one in (False, True))
        assert (metrics in plain.splitlines(), metrics in wanted.splitlines()) == (False, True)

    def test_every_bridge_has_a_client_id_of_its_own(self) -> None:
        ids = [
            line
            for broker in ("farm-a", "farm-b")
            for line in rendered(site(), f"{broker}/mosquitto.conf").splitlines()
            if line.startswith("remote_clientid")
        ]
        assert len(ids) == len(set(ids)) == 4

    @pytest.mark.parametrize("security", ["passwords", "mtls"])
    def test_the_client_id_of_a_bridge_can_be_guessed_by_nobody_and_its_state_stays_where_it_is_read(
        self, security: str
    ) -> None:
        # A broker goes by the client id alone: who knows it, with whatever account, cuts the farm off.
        one = site(security=security)
        confs = []
        for secret in ("one-secret", "one-secret", "another-secret"):
            files = {file.path: file.content for file in render(one, dict.fromkeys(one.accounts(), secret))}
            confs.append(files["farm-a/mosquitto.conf"])
        ids = [[line for line in conf.splitlines() if line.startswith("remote_clientid ")] for conf in confs]
        assert ids[0] == ids[1]
        assert not set(ids[0]) & set(ids[2])
        for kind, line in zip(("ctl", "data"), ids[0], strict=True):
            assert re.fullmatch(rf"remote_clientid _bridge/cloud/farm-a/{kind}~[0-9a-f]{{16}}", line)
            assert "one-secret" not in line
        assert f"notification_topic {topics.bridge_state('cloud/farm-a')}" in confs[0].splitlines()

    def test_a_broker_takes_no_more_memory_than_the_site_gives_it(self) -> None:
        one = site(farms=[{"name": "farm-a", "memory_mb": 500}, {"name": "farm-b"}])
        assert "memory_limit 500000000" in rendered(one, "farm-a/mosquitto.conf").splitlines()
        assert "memory_limit" not in rendered(one, "farm-b/mosquitto.conf")

    def test_a_farm_below_a_region_bridges_to_the_region(self) -> None:
        farm = rendered(region_site(), "north-farm-a/mosquitto.conf")
        assert "address north.example:1884" in farm
        assert "address cloud.example:1883" in rendered(region_site(), "north/mosquitto.conf")

    def test_an_uplink_of_its_own_takes_the_place_of_the_address_above(self) -> None:
        one = site(farms=[{"name": "farm-a", "uplink": "127.0.0.1:7001"}])
        assert rendered(one, "farm-a/mosquitto.conf").count("address 127.0.0.1:7001\n") == 2

    def test_name_installed_paths_unless_told_otherwise(self, tmp_path: Path) -> None:
        assert "password_file /etc/mosquitto/passwd" in rendered(site(), "farm-a/mosquitto.conf")
        assert "\nuser " not in rendered(site(), "farm-a/mosquitto.conf")
        render_to(site(), tmp_path, Layout.beside(tmp_path))
        conf = (tmp_path / "farm-a" / "mosquitto.conf").read_text()
        assert f"persistence_location {tmp_path}/farm-a/data/\n" in conf
        assert "\nuser " in conf
        assert (tmp_path / "farm-a" / "data").is_dir()


class TestRights:
    def test_only_those_who_connect_there_have_an_account(self) -> None:
        accounts = {
            broker: [line.partition(":")[0] for line in rendered(site(), f"{broker}/passwd").splitlines()]
            for broker in ("cloud", "farm-a", "farm-b")
        }
        assert accounts == {
            "cloud": ["cloud", "_bridge/cloud/farm-a", "_bridge/cloud/farm-b", "viewer"],
            "farm-a": ["cloud/farm-a", "cloud/farm-a/pi-1", "cloud/farm-a/pi-2", "viewer"],
            "farm-b": ["cloud/farm-b", "cloud/farm-b/pi-1", "viewer"],
        }

    def test_name_everybody_once_and_give_each_what_topics_says(self) -> None:
        acl = rendered(site(), "farm-a/acl")
        assert [line for line in acl.splitlines() if line.startswith("user ")] == [
            "user viewer",
            "user cloud/farm-a",
            "user cloud/farm-a/pi-1",
            "user cloud/farm-a/pi-2",
        ]
        assert lines_after(acl, "user viewer") == ["topic read hfl/#", "topic read $SYS/#"]
        for path in ("cloud/farm-a", "cloud/farm-a/pi-1"):
            rights = topics.acl_node("fed1", path, has_children=path == "cloud/farm-a")
            assert lines_after(acl, f"user {path}") == [f"topic {access} {pattern}" for access, pattern in rights]

    def test_a_bridge_account_cannot_be_taken_for_a_node(self) -> None:
        account = bridge_account("cloud/farm-a")
        assert not topics.is_path(account)
        assert f"user {account}" in rendered(site(), "cloud/acl")
        assert f"user {account}" not in rendered(site(), "farm-a/acl")

    @pytest.mark.parametrize("broker", ["cloud", "farm-a"])
    def test_are_each_accounts_own_and_nobodys_by_pattern(self, broker: str) -> None:
        # A pattern would hold for every account, and give a board what only an aggregator needs.
        lines = [line for line in rendered(site(), f"{broker}/acl").splitlines() if line and line[0] != "#"]
        assert {line.partition(" ")[0] for line in lines} == {"user", "topic"}
        assert lines[0].startswith("user ")

    def test_are_taken_from_who_is_shut_out(self) -> None:
        one = site()
        out = {"cloud/farm-a/pi-1", bridge_account("cloud/farm-b")}
        files = {file.path: file.content for file in render(one, dict.fromkeys(one.accounts(), PASSWORD), shut_out=out)}
        assert "pi-1" not in files["farm-a/acl"]
        assert "user cloud/farm-a/pi-2" in files["farm-a/acl"]
        assert "farm-b" not in files["cloud/acl"]


class TestSensors:
    def one(self, security: str = "passwords") -> Site:
        farm = {"name": "farm-a", "devices": ["pi-1"], "sensors": ["sensors/#"], "sensor_accounts": ["field-1"]}
        return site(security=security, farms=[farm, {"name": "farm-b", "devices": ["pi-1"]}])

    @pytest.mark.parametrize("security", ["passwords", "mtls"])
    def test_write_what_the_devices_of_their_farm_read(self, security: str) -> None:
        acl = rendered(self.one(security), "farm-a/acl")
        assert lines_after(acl, "user field-1") == ["topic write sensors/#"]
        assert lines_after(acl, "user cloud/farm-a/pi-1")[-1] == "topic read sensors/#"
        assert "sensors" not in "".join(lines_after(acl, "user cloud/farm-a"))
        for broker in ("cloud", "farm-b"):
            assert "sensors/#" not in rendered(self.one(security), f"{broker}/acl")
        assert "sensors/#" not in rendered(self.one(security), "farm-a/mosquitto.conf")

    @pytest.mark.parametrize("security", ["passwords", "mtls"])
    def test_have_a_password_at_their_own_broker(self, security: str) -> None:
        assert "\nfield-1:$7$" in rendered(self.one(security), "farm-a/passwd")
        assert "field-1" not in rendered(self.one(security), "cloud/passwd")


class TestCertificates:
    def conf(self, broker: str, **changes: Any) -> list[str]:
        return rendered(site(security="mtls", **changes), f"{broker}/mosquitto.conf").splitlines()

    def test_are_asked_of_nodes_and_bridges_and_give_the_account(self) -> None:
        lines = self.conf("cloud")
        start = lines.index("listener 8884")
        assert lines[start + 1 : start + 7] == [
            "cafile /etc/mosquitto/ca.crt",
            "certfile /etc/mosquitto/broker.crt",
            "keyfile /etc/mosquitto/broker.key",
            "crlfile /etc/mosquitto/crl.pem",
            "require_certificate true",
            "use_identity_as_username true",
        ]

    def test_are_not_asked_of_people_who_have_tls_and_a_password(self) -> None:
        lines = self.conf("farm-a")
        start = lines.index("listener 8883")
        assert [line.partition(" ")[0] for line in lines[start + 1 : start + 4]] == ["cafile", "certfile", "keyfile"]
        assert "require_certificate true" not in lines[start:]
        assert rendered(site(security="mtls"), "farm-a/passwd").startswith("viewer:")
        assert len(rendered(site(security="mtls"), "farm-a/passwd").splitlines()) == 1

    def test_leave_no_listener_without_tls(self) -> None:
        for line in (lines := self.conf("cloud", cloud={"host": "cloud.example", "websockets_port": 9001})):
            if line.startswith("listener "):
                block = lines[lines.index(line) + 1 :][:4]
                assert any(each.startswith("certfile ") for each in block), line

    def test_of_a_bridge_take_the_place_of_its_password(self) -> None:
        lines = self.conf("farm-a")
        assert lines.count("bridge_certfile /etc/mosquitto/bridge.crt") == 2
        assert lines.count("bridge_keyfile /etc/mosquitto/bridge.key") == 2
        assert lines.count("bridge_cafile /etc/mosquitto/ca.crt") == 2
        assert "address cloud.example:8884" in lines
        assert not any(line.startswith(("remote_username", "remote_password", "bridge_insecure")) for line in lines)

    def test_leave_a_password_to_nobody_but_people(self, tmp_path: Path) -> None:
        render_to(site(security="mtls"), tmp_path)
        bridges = ["_bridge/cloud/farm-a", "_bridge/cloud/farm-b"]  # secrets of their client ids
        assert list(yaml.safe_load((tmp_path / "passwords.yaml").read_text())) == [*bridges, "viewer"]
        assert [file.name for file in (tmp_path / "secrets").iterdir()] == ["viewer"]

    def test_of_people_nobody_means_no_listener_for_them(self) -> None:
        listeners = [line for line in self.conf("cloud", viewers=[]) if line.startswith("listener ")]
        assert listeners == ["listener 8884"]


class TestPasswords:
    def test_are_drawn_once_and_kept(self, tmp_path: Path) -> None:
        assert all(outcome.changed for outcome in render_to(site(), tmp_path))
        assert not any(outcome.changed for outcome in render_to(site(), tmp_path))

    def test_a_new_device_changes_only_its_own_farm(self, tmp_path: Path) -> None:
        render_to(site(farms=[{"name": "farm-a", "devices": ["pi-1"]}, {"name": "farm-b"}]), tmp_path)
        more = site(farms=[{"name": "farm-a", "devices": ["pi-1", "pi-2"]}, {"name": "farm-b"}])
        changed = {str(one.path.relative_to(tmp_path)) for one in render_to(more, tmp_path) if one.changed}
        assert changed == {"passwords.yaml", "secrets/cloud-farm-a-pi-2", "farm-a/acl", "farm-a/passwd"}

    def test_lie_in_files_for_their_owner_only(self, tmp_path: Path) -> None:
        for outcome in render_to(site(), tmp_path):
            assert stat.S_IMODE(outcome.path.stat().st_mode) == 0o600, outcome.path

    def test_open_rights_are_taken_back_on_a_file_that_did_not_change(self, tmp_path: Path) -> None:
        render_to(site(), tmp_path)
        (tmp_path / "passwords.yaml").chmod(0o644)
        render_to(site(), tmp_path)
        assert stat.S_IMODE((tmp_path / "passwords.yaml").stat().st_mode) == 0o600

    def test_an_account_finds_its_own_in_a_file(self, tmp_path: Path) -> None:
        render_to(site(), tmp_path)
        kept = yaml.safe_load((tmp_path / "passwords.yaml").read_text())
        assert secret_path(tmp_path, "cloud/farm-a/pi-1").read_text() == kept["cloud/farm-a/pi-1"] + "\n"
        assert len(kept["cloud/farm-a/pi-1"]) == 43  # 32 random bytes in base64

    def test_a_bridge_has_its_own_in_its_configuration(self, tmp_path: Path) -> None:
        render_to(site(), tmp_path)
        kept = yaml.safe_load((tmp_path / "passwords.yaml").read_text())
        conf = (tmp_path / "farm-a" / "mosquitto.conf").read_text()
        assert conf.count(f"remote_password {kept['_bridge/cloud/farm-a']}\n") == 2

    def test_of_ones_own_choice_are_used(self, tmp_path: Path) -> None:
        (tmp_path / "passwords.yaml").write_text("viewer: let-me-look\n")
        render_to(site(), tmp_path)
        assert secret_path(tmp_path, "viewer").read_text() == "let-me-look\n"

    def test_with_a_space_are_refused_by_account_and_not_shown(self, tmp_path: Path) -> None:
        (tmp_path / "passwords.yaml").write_text("viewer: let me look\n")
        with pytest.raises(ConfigError, match=r"viewer: a password is 8 to 200") as raised:
            render_to(site(), tmp_path)
        assert "let me look" not in str(raised.value)

    @pytest.mark.parametrize("text", ["viewer: 12345678\n", "- viewer\n", "viewer: {a: b}\n"])
    def test_file_that_is_no_mapping_of_texts_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "passwords.yaml").write_text(text)
        with pytest.raises(ConfigError, match="not a mapping of accounts to passwords"):
            render_to(site(), tmp_path)

    def test_file_that_is_no_yaml_is_named_with_its_line(self, tmp_path: Path) -> None:
        (tmp_path / "passwords.yaml").write_text("cloud: abc\nviewer: [geheim\n")
        with pytest.raises(ConfigError, match=r"passwords.yaml:3:1 is not YAML") as raised:
            render_to(site(), tmp_path)
        assert "geheim" not in str(raised.value)

    def test_an_output_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "cloud").write_text("a file where a directory should be")
        with pytest.raises(ConfigError, match=r"cannot write .*cloud"):
            render_to(site(), tmp_path)

    def test_hash_has_the_form_that_mosquitto_reads(self) -> None:
        kind, iterations, salt, key = password_hash("secret", b"0123456789ab").split("$")[1:]
        assert (kind, iterations) == ("7", "101")
        assert base64.b64decode(salt) == b"0123456789ab"
        assert len(base64.b64decode(key)) == 64

    def test_hash_is_the_one_that_mosquittos_own_tool_makes(self, tmp_path: Path) -> None:
        passwd = tmp_path / "passwd"
        try:
            subprocess.run(["mosquitto_passwd", "-b", "-c", passwd, "me", "secret"], check=True)  # noqa: S607
        except FileNotFoundError:
            pytest.skip("mosquitto_passwd is not installed")
        theirs = passwd.read_text().strip().partition(":")[2]
        salt = base64.b64decode(theirs.split("$")[3])
        assert password_hash("secret", salt) == theirs


class TestSiteFilesThatAreRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"farms": [{"name": "farm a"}]}, "a name is letters, digits"),
            ({"farms": [{"name": "a/b"}]}, "a name is letters, digits"),
            ({"farms": [{"name": "_bridge"}]}, "a name is letters, digits"),
            ({"farms": [{"name": "a"}, {"name": "a"}]}, "'cloud/a' stands in this site twice"),
            ({"farms": [{"name": "a", "devices": ["x", "x"]}]}, "'cloud/a/x' stands in this site twice"),
            ({"farms": [{"name": "cloud"}]}, "would be called 'cloud'"),
            ({"farms": [{"name": "secrets"}]}, "would be called 'secrets'"),
            ({"farms": [{"name": "a", "devices": ["b-c"]}, {"name": "a-b", "devices": ["c"]}]}, "two secrets"),
            ({"viewers": ["cloud"]}, "would have its rights"),
            ({"viewers": ["me", "me"]}, "'me' stands in this site twice"),
            ({"cloud": {}}, "cloud has farms below it, so it needs `host:`"),
            ({"cloud": {"host": "x", "uplink": "y:1"}}, "Extra inputs are not permitted"),
            ({"cloud": {"host": "x\nuser root"}}, "String should match pattern"),
            ({"farms": [{"name": "a", "port": 0}]}, "greater than or equal to 1"),
            (
                {"farms": [{"name": "a", "farms": [{"name": "y"}]}]},
                "cloud/a has farms below",
            ),
        ],
    )
    def test_say_what_is_wrong(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            site(**changes)

    def test_a_tree_deeper_than_a_path_may_be(self) -> None:
        farm: dict[str, Any] = {"name": "f8"}
        for level in range(7, 0, -1):
            farm = {"name": f"f{level}", "host": "x", "farms": [farm]}
        with pytest.raises(ValidationError, match="more than 8 levels"):
            site(farms=[farm])


def test_rendering_is_the_same_every_time() -> None:
    passwords = dict.fromkeys(site().accounts(), "placeholder")
    assert render(site(), passwords, INSTALLED) == render(site(), passwords, INSTALLED)


def test_a_missing_password_is_named() -> None:
    with pytest.raises(ConfigError, match="cloud: a password is"):
        render(site(), {})
