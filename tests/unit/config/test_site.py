from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from hfl_mqtt.config.roles import load_any
from hfl_mqtt.config.site import Site
from hfl_mqtt.errors import ConfigError


def mistakes(folder: Path, text: str) -> list[str]:
    path = folder / "site.yaml"
    path.write_text(dedent(text).lstrip(), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_any(path)
    return str(caught.value).removeprefix(f"{path}:").split(f"\n{path}:")


def test_every_mistake_of_a_site_is_told_at_its_own_line(tmp_path: Path) -> None:
    text = """
        role: site
        federation: fed
        cloud:
          port: 1883
        farms:
          - name: a
            devices: [b-c, x, x]
            farms:
              - name: y
          - name: a-b
            devices: [c]
          - name: secrets
          - name: a
        viewers: [cloud, me, me]
    """
    needs = "has farms below it, so it needs `host:`, where they find it"
    assert mistakes(tmp_path, text) == [
        f"3:1 cloud: cloud {needs}",
        f"6:5 farms[0]: cloud/a {needs}",
        "7:23 farms[0].devices[2]: 'cloud/a/x' stands in this site twice; rename one",
        "11:15 farms[1].devices[0]: two secrets would be 'cloud-a-b-c'; rename one",
        "12:11 farms[2].name: the files of two brokers, or of one and our own, would be called 'secrets'; rename one",
        "13:11 farms[3].name: 'cloud/a' stands in this site twice; rename one",
        "14:11 viewers[0]: the viewer 'cloud' is called like the cloud and would have its rights; rename it",
        "14:22 viewers[2]: 'me' stands in this site twice; rename one",
    ]


def test_names_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    text = """
        role: site
        federation: fed
        cloud: {host: h}
        farms:
          - name: farm-a
            devices: [pi-1, pi-2, PI-1]
          - name: FARM-A
          - name: Secrets
          - name: farm-b
            devices: [PI-1]
        viewers: [me, Cloud]
    """
    why = "differ only in case: DNS and some disks take them for one; rename one"
    assert mistakes(tmp_path, text) == [
        f"6:27 farms[0].devices[2]: 'cloud/farm-a/pi-1' and 'cloud/farm-a/PI-1' {why}",
        f"7:11 farms[1].name: 'cloud/farm-a' and 'cloud/FARM-A' {why}",
        f"8:11 farms[2].name: 'secrets' and 'Secrets' {why}",
        f"11:15 viewers[1]: 'cloud' and 'Cloud' {why}",
    ]


def test_a_broker_says_where_it_stands_in_the_file() -> None:
    site = Site.model_validate(
        {
            "federation": "fed",
            "cloud": {"host": "h"},
            "farms": [{"name": "a"}, {"name": "b", "host": "h", "farms": [{"name": "c"}]}],
        }
    )
    assert [(broker.path, broker.keys) for broker in site.brokers()] == [
        ("cloud", ("cloud",)),
        ("cloud/a", ("farms", 0)),
        ("cloud/b", ("farms", 1)),
        ("cloud/b/c", ("farms", 1, "farms", 0)),
    ]


def test_what_goes_with_certificates_alone_or_is_too_long_for_one_is_told(tmp_path: Path) -> None:
    plain = """
        role: site
        federation: fed
        cloud: {viewer_port: 8883}
    """
    assert mistakes(tmp_path, plain) == ["3:22 cloud.viewer_port: is a TLS port: say `security: mtls`, or leave it out"]
    locked = f"""
        role: site
        federation: fed
        security: mtls
        cloud: {{host: h, port: 8883}}
        farms:
          - name: {"a" * 52}
            devices: [pi-1]
    """
    path = f"cloud/{'a' * 52}"
    assert mistakes(tmp_path, locked) == [
        "4:1 cloud.viewer_port: 8883 is another listener's port of this broker; give each its own",
        f"6:11 farms[0].name: {path!r} is longer than 56, its bridge's certificate has no room",
    ]


def test_every_place_listens_where_its_profile_does_unless_it_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(
        "role: site\nfederation: fed\nsecurity: mtls\ncloud: {host: h}\n"
        "farms: [{name: a, host: h, port: 9884, farms: [{name: b, viewer_port: 9883}]}]\n"
    )
    site = load_any(path)
    assert isinstance(site, Site)
    assert [(each.place.port, each.place.viewer_port) for each in site.brokers()] == [
        (8884, 8883),
        (9884, 8883),
        (8884, 9883),
    ]
    assert [each.place.found_at for each in site.brokers()] == ["h", "h", "b.local"]


def test_what_is_said_of_a_device_that_is_not_there_is_told(tmp_path: Path) -> None:
    text = """
        role: site
        federation: fed
        cloud:
          devices: [pi-1]
          data: {pi-2: {station: "03047"}}
          own_keys: [pi-3]
    """
    assert mistakes(tmp_path, text) == [
        "5:10 cloud.data.pi-2: 'pi-2' is no device of cloud: name it in `devices` too",
        "6:14 cloud.own_keys[0]: 'pi-3' is no device of cloud: name it in `devices` too",
    ]


def test_sensors_speak_on_topics_of_their_own_and_under_names_of_their_own(tmp_path: Path) -> None:
    text = """
        role: site
        federation: fed
        cloud:
          devices: [pi-1]
          sensor_accounts: [field-1, cloud, viewer]
    """
    assert mistakes(tmp_path, text) == [
        "5:3 cloud.sensor_accounts: have nowhere to write: say in `sensors` which topics are theirs",
        "5:30 cloud.sensor_accounts[1]: the sensors' account 'cloud' is called like the cloud and would have its rights"
        "; rename it",
        "5:37 cloud.sensor_accounts[2]: 'viewer' stands in this site twice; rename one",
    ]
    for topic in ("hfl/#", "#", "+/x", "hflb/fed/x", "$SYS/#", "sensors/#/x", "x\\ntopic readwrite y"):
        wrong = f"""
            role: site
            federation: fed
            cloud:
              sensors: ["{topic}"]
        """
        assert ["must be topics such as sensors/#" in each for each in mistakes(tmp_path, wrong)] == [True], topic
