from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from pydantic import BaseModel, ValidationError

from hfl_mqtt import registry
from hfl_mqtt.config.models import (
    BrokerConfig,
    ClientConfig,
    CloudConfig,
    DemoConfig,
    DeviceConfig,
    EdgeConfig,
    HomeConfig,
    PlanConfig,
    default_state_dir,
)
from hfl_mqtt.config.roles import load_any, load_role
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.protocol import messages
from hfl_mqtt.transport.link import Account

CLOUD = """
role: cloud
federation: fed
broker: {host: 10.0.0.1}
task: {name: mnist}
rounds: 3
"""
EDGE = """
role: edge
federation: fed
name: cloud/farm-a
broker: {host: 10.0.0.1}
"""
CLIENT = """
role: client
federation: fed
broker: {host: 10.0.0.1}
task: {name: mnist}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str, more: str = "") -> Path:
    """A file x.yaml with this text, and more keys below it from line 10 on."""
    lines = text.strip().splitlines()
    Path("x.yaml").write_text("\n".join([*lines, *[""] * (9 - len(lines)), dedent(more)]), encoding="utf-8")
    return Path("x.yaml")


def mistakes(text: str, more: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_any(written(text, more))
    return str(caught.value).removeprefix("x.yaml:").split("\nx.yaml:")


def cloud(more: str = "") -> CloudConfig:
    return load_role(written(CLOUD, more), CloudConfig)


def client(more: str) -> ClientConfig:
    return load_role(written(CLIENT, more), ClientConfig)


WRONG = {
    "a literal password": (
        EDGE.replace("10.0.0.1", "10.0.0.1, password: hunter2"),
        "",
        [
            "4:26 broker.password: is not taken here, so that no password lies in a configuration: put it in a file "
            "and name that in password_file, or in an environment variable and name that in password_env"
        ],
    ),
    "two places for a password": (
        EDGE.replace("10.0.0.1", "10.0.0.1, password_file: a, password_env: B"),
        "",
        ["4:58 broker.password_env: stands beside password_file: keep one of them"],
    ),
    "a host with its port": (
        EDGE.replace("10.0.0.1", "'mqtt://10.0.0.1:1883'"),
        "",
        [
            "4:16 broker.host: must be a host's name or address alone, such as 192.168.1.10, got "
            "'mqtt://10.0.0.1:1883': the port stands in a key of its own, `port`"
        ],
    ),
    "an edge without a parent": (
        EDGE.replace("cloud/farm-a", "farm-a"),
        "",
        ["3:7 name: must start with its parent's name, such as cloud/farm-a, got 'farm-a'"],
    ),
    "a name with a space": (
        EDGE.replace("cloud/farm-a", "cloud/farm a"),
        "",
        [
            "3:7 name: must be a node's name, such as cloud/farm-a/pi-07: letters, digits, '_', '.' and '-' in at most "
            "8 parts with '/' between, got 'cloud/farm a'"
        ],
    ),
    "a cloud with a parent": (
        CLOUD,
        "name: up/cloud",
        ["10:7 name: must be one name without '/', for the cloud is the root of the tree, got 'up/cloud'"],
    ),
    "no such task": (
        CLOUD.replace("mnist", "mnits"),
        "",
        ["4:14 task.name: no task is called 'mnits', did you mean 'mnist'?"],
    ),
    "no such task file": (
        CLOUD.replace("name: mnist", "file: mine.py"),
        "",
        ["4:14 task.file: no such file: {folder}/mine.py"],
    ),
    "neither task nor file": (
        CLOUD.replace("name: mnist", "depth: 3"),
        "",
        ["4:1 task: needs name, one of {tasks}, or file, a Python file of your own"],
    ),
    "a misspelt task": (
        CLOUD.replace("name: mnist", "nmae: mnist"),
        "",
        ["4:14 task.nmae: is no task, did you mean 'name'?"],
    ),
    "a task and a file": (
        CLOUD.replace("name: mnist", "name: mnist, file: x.yaml"),
        "",
        ["4:27 task.file: stands beside name: a task has one of them"],
    ),
    "epochs and steps": (
        CLOUD,
        "plan: {epochs: 1, steps: 2}",
        ["10:26 plan.steps: stands beside epochs: a plan has one of them"],
    ),
    "true for a number": (CLOUD, "plan: {epochs: true}", ["10:16 plan.epochs: must be a number, got true"]),
    "no such codec": (
        CLOUD,
        "tiers: [{codec: int9}]",
        [
            "10:17 tiers[0].codec: codec 'int9': no codec is called 'int9', did you mean 'int8'? "
            f"Known: {', '.join(registry.names('codecs'))}"
        ],
    ),
    "no such codec down": (
        CLOUD,
        "tiers: [{downlink: 'rot1 | zst'}]",
        [
            "10:20 tiers[0].downlink: codec 'rot1 | zst': no codec is called 'zst', did you mean 'zstd'? "
            f"Known: {', '.join(registry.names('codecs'))}"
        ],
    ),
    "a codec with a number that it does not take": (
        CLOUD,
        "tiers: [{}, {codec: topk(2)}]",
        ["10:21 tiers[1].codec: codec 'topk(2)': topk takes a fraction over 0 and up to 1, not 2"],
    ),
    "a budget that is no size": (
        CLOUD,
        "tiers: [{codec: auto, budget: 2 MB/rund}]",
        ["10:31 tiers[0].budget: must be a size such as 256 KiB, 2 MB or 1 GiB, got '2 MB/rund'"],
    ),
    "a budget of nothing": (
        CLOUD,
        "tiers: [{codec: auto, budget: 0 B/round}]",
        ["10:31 tiers[0].budget: must be greater than or equal to 1, got '0 B/round'"],
    ),
    "a budget that nobody keeps": (
        CLOUD,
        "tiers: [{}, {codec: rot1, budget: 2 MB/round}]",
        ["10:35 tiers[1].budget: is only kept by a codec that is chosen: set codec or downlink to auto"],
    ),
    "a run's budget by the round": (
        CLOUD,
        "stop: {budget: 20 MB/round}",
        ["10:16 stop.budget: must be a size such as 256 KiB, 2 MB or 1 GiB, got '20 MB/round'"],
    ),
    "all that is wrong with when to stop": (
        CLOUD,
        """\
        stop:
          tagret: 0.9
          patience: 0
          target: high
        """,
        [
            "11:3 stop.tagret: is not a key here, did you mean 'target'?",
            "12:13 stop.patience: must be greater than or equal to 1, got 0",
            "13:11 stop.target: must be a number, got 'high'",
        ],
    ),
    "no such way to begin": (
        CLOUD,
        "initial: seeds",
        ["10:10 initial: must be 'auto', 'seed' or 'weights', got 'seeds', did you mean 'seed'?"],
    ),
    "no such strategy": (
        CLOUD,
        "strategy: fedagv",
        [
            "10:11 strategy: no strategy is called 'fedagv', did you mean 'fedavg'? "
            f"Known: {', '.join(registry.names('strategies'))}"
        ],
    ),
    "a tier that cannot end in time": (
        CLOUD,
        """\
        tiers:
          - open_for: 10 min
          - open_for: 5 min
            rounds: 3
        """,
        [
            "12:15 tiers[1].open_for: 3 rounds of 5 min can take 15 min, but the tier above waits only 10 min: "
            "raise tiers[0].open_for, or lower this"
        ],
    ),
    "a tier that cannot end in time by default": (
        CLOUD,
        "tiers: [{open_for: 30}, {grace: 1}]",
        [
            "10:25 tiers[1].open_for: 1 round of 1 min can take 1 min, but the tier above waits only 30 s: "
            "raise tiers[0].open_for, or lower this"
        ],
    ),
    "a cloud that does not wait for its edges' stragglers": (
        CLOUD,
        "tiers: [{open_for: 10 min, grace: 10 s}, {rounds: 2}]",
        [
            "10:35 tiers[0].grace: is over before the tier below has waited for its stragglers, up to 10 s in "
            "2 rounds: one slow device would cost its farm the round; make it longer, or leave it out"
        ],
    ),
    "the cloud's rounds in its tier": (
        CLOUD,
        "tiers: [{rounds: 2}]",
        ["10:18 tiers[0].rounds: the cloud's own rounds stand at the top, in rounds: leave this one out"],
    ),
    "a quorum that nobody waits for": (
        CLOUD,
        "tiers: [{quorum: 3}]\nwait_for: 2",
        [
            "10:18 tiers[0].quorum: 3 children must answer, but the first round starts with 2: raise wait_for to 3, "
            "or lower this"
        ],
    ),
    "one bad tier is one mistake": (
        CLOUD,
        "tiers: [{quorum: 0 %}]",
        ["10:18 tiers[0].quorum: must be a share such as 50 % or 0.5, or a count such as 3, got '0 %'"],
    ),
    "no tiers": (CLOUD, "tiers: []", ["10:1 tiers: must be a list of at least 1, got 0"]),
    "no client": (CLIENT, "", ["1:1 name is missing; or clients, a list of several"]),
    "a client and clients": (
        CLIENT,
        "name: cloud/a/b\nclients: [{name: cloud/a/c}]",
        ["10:7 name: stands beside clients: each entry there has its own"],
    ),
    "clients of two parents": (
        CLIENT,
        "clients: [{name: cloud/a/1}, {name: cloud/b/2}]",
        [
            "10:37 clients[1].name: is not below cloud/a, as cloud/a/1 is: clients of one process share a parent "
            "and its broker"
        ],
    ),
    "the same client twice": (
        CLIENT,
        "clients: [{name: cloud/a/1}, {name: cloud/a/1}]",
        ["10:37 clients[1].name: is the name of clients[0] too: each has its own"],
    ),
    "one account for several clients": (
        CLIENT.replace("10.0.0.1", "10.0.0.1, user: me"),
        "clients: [{name: cloud/a/1}, {name: cloud/a/2}]",
        ["3:32 broker.user: is one account for several clients: leave it out, each is its own account"],
    ),
    "a number for a client's name": (
        CLIENT,
        "clients: [{name: 3047}]",
        ['10:18 clients[0].name: must be text, got 3047: put it in quotes, "3047"'],
    ),
    "no in a task's own options": (
        CLOUD.replace("mnist", "mnist, download: no"),
        "",
        ["4:31 task.download: could mean false or the text 'no': write false, or \"no\""],
    ),
    "no such device": (
        CLIENT,
        "name: cloud/a/b\ndevice: gpu",
        ["11:9 device: must be 'auto', 'cpu' or 'cuda', got 'gpu'"],
    ),
    "no role": (
        "federation: fed",
        "",
        ["1:1 role is missing: say what this file is for, role: one of cloud, edge, client, demo, site, simulation"],
    ),
    "no such role": (
        "role: clod",
        "",
        ["1:7 role: must be one of cloud, edge, client, demo, site, simulation, got 'clod', did you mean 'cloud'?"],
    ),
    "a demo with too few clients": (
        "role: demo",
        "clients: 2\nfarms: 3",
        ["10:10 clients: 2 devices do not fill 3 farms: each needs one"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_every_mistake_is_told_with_its_place(case: str, folder: Path) -> None:
    text, more, expected = WRONG[case]
    tasks = ", ".join(registry.names("tasks"))
    assert mistakes(text, more) == [
        line.replace("{folder}", str(folder)).replace("{tasks}", tasks) for line in expected
    ]


def test_a_password_that_stands_in_a_file_is_never_shown() -> None:
    assert "hunter2" not in str(mistakes(EDGE.replace("10.0.0.1", "10.0.0.1, password: hunter2")))


def test_a_file_of_another_role_is_one_mistake() -> None:
    with pytest.raises(ConfigError, match=r"^x\.yaml:1:7 role: this file is for 'cloud', a file for 'edge' is wanted$"):
        load_role(written(CLOUD), EdgeConfig)


def test_a_site_is_read_by_its_own_model() -> None:
    site = load_any(written("role: site\nfederation: fed\ncloud: {port: 1884}"))
    assert type(site).__name__ == "Site"


def test_the_cloud_has_the_plans_defaults() -> None:
    assert PlanConfig().to_plan("mnist") == messages.Plan(task="mnist")


def test_a_plan_in_steps_has_no_epochs() -> None:
    plan = cloud("plan: {steps: 50, learning_rate: 1e-3}").to_plan()
    assert (plan.steps, plan.epochs, plan.learning_rate) == (50, None, 0.001)


def test_the_clouds_tiers_start_with_its_global_rounds() -> None:
    config = cloud("seed: 7\ntiers: [{quorum: 100 %, open_for: 1 h}, {rounds: 2, quorum: 50 %, codec: 'int8|zstd'}]")
    below = messages.Tier(rounds=2, quorum=0.5, codec="int8 | zstd")
    # The cloud waits for stragglers longer than an edge does in its two rounds of 5 s.
    assert config.to_tiers() == (messages.Tier(rounds=3, quorum=1.0, open_for_s=3600.0, grace_s=25.0), below)
    assert config.to_plan() == messages.Plan(task="mnist", seed=7, tiers=(below,))


def test_an_asynchronous_tier_is_a_count_no_grace_and_a_discount() -> None:
    text = """
    wait_for: 3
    tiers:
      - {mode: async, buffer: 3, staleness_exponent: 1, max_staleness: 7}
      - {offline_rounds: 4}
    """
    above, below = cloud(text).to_tiers()
    assert (above.quorum, above.grace_s, above.late) == (3, 0.0, messages.Late.DISCOUNT)
    assert (above.staleness_exponent, above.max_staleness) == (1.0, 7)
    assert (below.late, below.offline_rounds) == (messages.Late.DROP, 4)


@pytest.mark.parametrize(
    ("tiers", "mistake"),
    [
        ("[{buffer: 3}]", r"tiers\[0\].buffer: only has a say where mode is async: set that, or quorum"),
        ("[{mode: async}]", r"tiers\[0\].mode: async needs buffer beside it: how many updates make a round"),
        ("[{mode: asink, buffer: 1}]", r"tiers\[0\].mode: must be 'sync' or 'async'"),
        ("[{mode: async, buffer: 1, quorum: 2}]", r"tiers\[0\].quorum: has no say where mode is async"),
        ("[{mode: async, buffer: 1, grace: 2 s}]", r"tiers\[0\].grace: has no say where mode is async"),
        ("[{mode: async, buffer: 1, late: drop}]", r"tiers\[0\].late: would drop what async is about"),
        ("[{mode: async, buffer: 5}]", r"tiers\[0\].buffer: 5 children must answer, .* raise wait_for to 5"),
        ("[{late: nxt}]", r"tiers\[0\].late: must be 'drop', 'next' or 'discount'.*did you mean 'next'"),
        ("[{late: next, staleness_exponent: 1}]", r"tiers\[0\].staleness_exponent: .* set late to discount"),
        ("[{max_staleness: 1}]", r"tiers\[0\].max_staleness: .* set late to next or discount"),
        ("[{late: next, offline_rounds: 1}]", r"tiers\[0\].offline_rounds: the cloud has no parent"),
        ("[{open_for: 1 h}, {offline_rounds: 1}]", r"tiers\[1\].offline_rounds: .* set tiers\[0\].late to discount"),
    ],
)
def test_what_is_said_of_late_updates_goes_together(tiers: str, mistake: str) -> None:
    with pytest.raises(ConfigError, match=mistake):
        cloud(f"tiers: {tiers}")


def test_clients_of_one_process_keep_their_state_together(folder: Path) -> None:
    several = client("state_dir: state\nclients: [{name: cloud/a/1}, {name: cloud/a/2}]")
    assert several.vault_path() == folder / "state"
    assert client("name: cloud/a/1\nstate_dir: state").vault_path() == folder / "state"
    unsaid = client("clients: [{name: cloud/a/1}, {name: cloud/a/2}]")
    assert unsaid.vault_path() == unsaid.state_path(unsaid.devices[0])


def test_tiers_have_the_messages_defaults() -> None:
    assert cloud().to_tiers()[1] == messages.Tier()


def test_each_tier_says_how_updates_come_up_and_how_the_model_goes_down() -> None:
    config = cloud(
        """\
        tiers:
          - {codec: auto, downlink: rot1, budget: 2 MB/round}
          - {codec: " rot1 ", downlink: "stc(0.01)|zstd(19)"}
        """
    )
    above, below = config.to_tiers()
    assert (above.codec, above.downlink, above.budget) == ("auto", "rot1", 2_000_000)
    assert (below.codec, below.downlink, below.budget) == ("rot1", "stc(0.01) | zstd(19)", None)


@pytest.mark.parametrize("text", ["500 kB/round", "500 kB", "500000", "500 kB /round"])
def test_a_budget_is_a_size_and_may_say_that_it_is_for_a_round(text: str) -> None:
    assert cloud(f"tiers: [{{downlink: auto, budget: {text}}}]").tiers[0].budget == 500_000


def test_a_run_goes_through_all_its_rounds_unless_told_when_to_stop() -> None:
    stop = cloud().stop
    assert (stop.metric, stop.target, stop.patience, stop.budget) == (None, None, None, None)
    stop = cloud("stop: {metric: unseen_rmse, target: 0.05, patience: 10, budget: 20 MB}").stop
    assert (stop.metric, stop.target, stop.patience, stop.budget) == ("unseen_rmse", 0.05, 10, 20_000_000)


@pytest.mark.parametrize(
    ("more", "initial"), [("", "auto"), ("initial: seed", "seed"), ("initial: weights", "weights")]
)
def test_the_first_model_goes_down_as_a_seed_where_that_does_unless_told_otherwise(more: str, initial: str) -> None:
    assert cloud(more).initial == initial


def test_a_tasks_own_options_are_kept_as_they_are() -> None:
    Path("mine.py").touch()
    config = load_role(written(CLOUD.replace("name: mnist", "file: mine.py, depth: 3, quick: false")), CloudConfig)
    assert config.task.options == {"file": str(Path("mine.py").absolute()), "depth": 3, "quick": False}


def test_a_tasks_file_is_relative_to_the_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine.py").touch()
    path = written(CLOUD.replace("name: mnist", "file: mine.py")).absolute()
    monkeypatch.chdir("/")
    config = load_role(path, CloudConfig)
    assert config.task.options == {"file": str(folder / "mine.py")}
    assert config.task.label == config.to_plan().task == "mine"


@pytest.mark.parametrize(
    ("given", "found"), [("digits", "/digits"), ("../digits", "/../digits"), ("/srv/digits", None), ("~/digits", None)]
)
def test_a_tasks_folder_is_relative_to_the_configuration(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: str, found: str | None
) -> None:
    path = written(CLOUD.replace("name: mnist", f"name: mnist, data_dir: {given}")).absolute()
    monkeypatch.chdir("/")
    options = load_role(path, CloudConfig).task.options
    assert options["data_dir"] == (f"{folder}{found}" if found else str(Path(given).expanduser()))


def test_options_that_a_registered_task_does_not_have_are_all_told_beside_what_else_is_wrong() -> None:
    text = CLIENT.replace("{name: mnist}", "{name: mnist, dat_dir: x, depth: 3}")
    more = """
        clients:
        - {name: cloud/a/b, data: {indx: 1, of: 2}}
        - {name: cloud/a/c, data: {hive: "03047"}}
        threads: none
    """
    known = "partition, index, of, seed, samples, alpha, shards_per_client"
    assert mistakes(text, more) == [
        "4:21 task.dat_dir: is no option of mnist, did you mean 'data_dir'?",
        "4:33 task.depth: is no option of mnist; the options are data_dir, download",
        "12:28 clients[0].data.indx: is no option of mnist, did you mean 'index'?",
        f"13:28 clients[1].data.hive: is no option of mnist; the options are {known}",
        "14:10 threads: must be a whole number, got 'none'",
    ]


def test_an_option_of_the_data_of_a_single_client_is_checked_too() -> None:
    text = CLIENT.replace("mnist", "soil-moisture")
    assert mistakes(text, "name: cloud/a/b\ndata: {statoin: '03047'}") == [
        "11:8 data.statoin: is no option of soil-moisture, did you mean 'station'?"
    ]


def test_the_options_of_a_task_file_are_its_own_business() -> None:
    Path("mine.py").touch()
    config = load_role(
        written(CLIENT.replace("name: mnist", "file: mine.py"), "name: cloud/a/b\ndata: {anything: 1}"), ClientConfig
    )
    assert config.devices[0].data == {"anything": 1}


def test_the_largest_model_is_written_with_its_unit() -> None:
    assert client("name: cloud/a/b\nmax_model: 64 MiB").max_model == 64 * 2**20
    assert load_role(written(EDGE), EdgeConfig).max_model == 2**30
    (mistake,) = mistakes(EDGE, "max_model: 2 GiB")
    assert mistake.startswith("10:12 max_model: must be ")


def test_one_client_and_a_list_of_one_are_the_same_device() -> None:
    single = client("name: cloud/a/b\ndata: {index: 1}")
    listed = client("clients: [{name: cloud/a/b, data: {index: 1}}]")
    assert single.devices == listed.devices == (DeviceConfig(name="cloud/a/b", data={"index": 1}),)


def test_a_client_connects_under_its_own_name_and_with_its_own_password(folder: Path) -> None:
    (folder / "ours").write_text("for all\n", encoding="utf-8")
    (folder / "mine").write_text("for b\r\n", encoding="utf-8")
    config = load_role(
        written(
            CLIENT.replace("10.0.0.1", "10.0.0.1, password_file: ours"),
            "clients: [{name: cloud/a/a}, {name: cloud/a/b, password_file: mine}]",
        ),
        ClientConfig,
    )
    assert [config.account(device) for device in config.devices] == [
        Account(host="10.0.0.1", port=1883, user="cloud/a/a", password="for all"),
        Account(host="10.0.0.1", port=1883, user="cloud/a/b", password="for b"),
    ]


def test_a_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = BrokerConfig(host="h", password_env="HFL_TEST_PASSWORD")
    monkeypatch.setenv("HFL_TEST_PASSWORD", "secret")
    assert broker.password() == "secret"
    monkeypatch.delenv("HFL_TEST_PASSWORD")
    with pytest.raises(ConfigError, match="HFL_TEST_PASSWORD holds no password: set it"):
        broker.password()


def test_no_password_is_none() -> None:
    assert BrokerConfig(host="h").password() is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        (b"", "on one line"),
        (b"a\nb\n", "on one line"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
def test_an_unusable_password_file_says_why(folder: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (folder / "secret").write_bytes(content)
    with pytest.raises(ConfigError, match=f"the password file .*secret .*{reason}"):
        BrokerConfig(host="h", password_file=folder / "secret").password()


def test_state_lies_in_the_xdg_folder_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_state_dir("fed", "cloud/farm-a") == Path("/state/hfl-mqtt/fed/cloud@farm-a")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cloud().state_path() == Path("/home/me/.local/state/hfl-mqtt/fed/cloud")


def test_clients_of_one_process_keep_their_state_apart(folder: Path) -> None:
    config = client("state_dir: state\nclients: [{name: cloud/a/1}, {name: cloud/a/2}]")
    assert [config.state_path(device) for device in config.devices] == [folder / "state" / "1", folder / "state" / "2"]


HOMES = """
name: cloud/a/1
state_dir: state
data: {index: 1}
homes:
  - {name: cloud/b/1, broker: {host: 10.0.0.2}}
  - {name: cloud/c/7, data: {index: 7}}
"""


def test_a_client_goes_on_at_another_home_with_its_broker_its_data_and_the_same_folder(folder: Path) -> None:
    config = client(HOMES)
    assert config.home_names == ("cloud/a/1", "cloud/b/1", "cloud/c/7")
    assert config.devices[0].name == "cloud/a/1"
    at = [config.at(name) for name in config.home_names]
    assert [(here.devices[0].name, here.broker.host, here.devices[0].data["index"]) for here in at] == [
        ("cloud/a/1", "10.0.0.1", 1),
        ("cloud/b/1", "10.0.0.2", 1),
        ("cloud/c/7", "10.0.0.1", 7),
    ]
    assert {here.state_path(here.devices[0]) for here in at} == {folder / "state"}
    assert config.at("cloud/z/1") is config
    assert client("name: cloud/a/1").home_names == ()


@pytest.mark.parametrize(
    ("more", "mistake"),
    [
        ("name: cloud/a/1\nhomes: [{name: cloud/a/1}]", "hold a name twice"),
        ("name: cloud/a/1\nhomes: [{name: cloud/b/1}, {name: cloud/b/1}]", "hold a name twice"),
        ("clients: [{name: cloud/a/1}]\nhomes: [{name: cloud/b/1}]", "stands beside clients"),
        ("name: cloud/a/1\nhomes: [{name: alone}]", "must start with its parent's name"),
    ],
)
def test_homes_are_others_and_of_one_client(more: str, mistake: str) -> None:
    with pytest.raises(ConfigError, match=mistake):
        client(more)


def test_where_the_cloud_and_the_edge_write(folder: Path) -> None:
    assert cloud("out: runs/1").out_path() == folder / "runs" / "1"
    assert cloud("state_dir: state").out_path() == folder / "state" / "out"
    edge = load_role(written(EDGE, "state_dir: state"), EdgeConfig)
    assert edge.journal_path() == folder / "state" / "journal.jsonl"


def test_holders_of_a_lease_share_a_name_and_have_folders_of_their_own(folder: Path) -> None:
    shared = load_role(written(EDGE, "lease: {holder: box-1, for: 20 s}"), EdgeConfig)
    assert shared.lease is not None
    assert (shared.lease.holder, shared.lease.lasts) == ("box-1", 20.0)
    assert shared.state_path() == default_state_dir("fed", "cloud/farm-a@box-1")
    own = load_role(written(EDGE, "state_dir: state\nlease: {holder: box-1}"), EdgeConfig)
    assert own.state_path() == folder / "state"
    for mistake, text in {"holder: a/b": "must be one name", "holder: a, for: 1 ms": "for"}.items():
        with pytest.raises(ConfigError, match=text):
            load_role(written(EDGE, f"lease: {{{mistake}}}"), EdgeConfig)


def test_every_key_of_a_demo_may_be_left_out() -> None:
    assert load_any(written("role: demo")) == DemoConfig()


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        cloud().rounds = 4


@pytest.mark.parametrize(
    "model",
    [BrokerConfig, ClientConfig, CloudConfig, DemoConfig, DeviceConfig, EdgeConfig, HomeConfig, PlanConfig],
)
def test_every_key_is_described(model: type[BaseModel]) -> None:
    plain = {"role", "name"}
    assert [name for name, field in model.model_fields.items() if not field.description and name not in plain] == []


def test_reading_a_configuration_loads_no_torch(folder: Path) -> None:
    task = CLIENT.replace("name: mnist", "name: mnist, data_dir: digits")
    written(task, "clients: [{name: cloud/a/b, data: {index: 1}}]").rename("client.yaml")
    written(CLOUD, "tiers: [{codec: int8 | zstd}]")
    code = (
        "import sys; from pathlib import Path; from hfl_mqtt.ops.check import check_files;"
        "sys.stderr.write(str(check_files([Path('x.yaml'), Path('client.yaml')], as_json=False)));"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "0"
    assert done.stdout.splitlines()[-1] == "False"
