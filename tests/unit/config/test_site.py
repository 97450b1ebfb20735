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
