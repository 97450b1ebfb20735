"""`hfl demo`: a cloud, farms and their devices on this machine, on real bridged brokers, watched while they learn."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.live import Live

from hfl_mqtt.config.models import DemoConfig
from hfl_mqtt.config.roles import load_role
from hfl_mqtt.config.wording import KeyPath, explain
from hfl_mqtt.errors import ConfigError, RunFailed
from hfl_mqtt.ops import children, report, signals
from hfl_mqtt.ops.baselines import Alone, Baselines
from hfl_mqtt.ops.federation import HOST, LocalFederation
from hfl_mqtt.ops.fleet import Fleet, Viewer, size, table
from hfl_mqtt.ops.report import Bytes, Report, Scores
from hfl_mqtt.ops.scenario import Scenario, scenario

#: How long nodes may take to come up and to leave, and baselines to be ready after the run.
READY_S, LEAVE_S, BASELINES_S = 60.0, 5.0, 150.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the command line asks for; None is what the configuration says."""

    config: Path | None = None
    task: str | None = None
    seed: int | None = None
    rounds: int | None = None
    farms: int | None = None
    clients: int | None = None
    data_dir: Path | None = None
    out: Path | None = None
    hold: bool = False
    as_json: bool = False

    def to_config(self) -> DemoConfig:
        """Return the configuration with the wishes in it.

        Raises:
            ConfigError: a wish or the file is wrong.
        """
        base = load_role(self.config, DemoConfig) if self.config is not None else DemoConfig()
        given: dict[str, Any] = {
            "seed": self.seed,
            "rounds": self.rounds,
            "farms": self.farms,
            "clients": self.clients,
            "data_dir": self.data_dir,
        }
        if self.task is not None:
            given["task"] = {"name": self.task}
        wanted = {**{name: getattr(base, name) for name in base.model_fields_set}, **_given(given)}
        try:
            return DemoConfig.model_validate(wanted)
        except ValidationError as error:
            mistakes = explain(error, DemoConfig, wanted, lambda _path: None)
            raise ConfigError("; ".join(f"{_option(each.path)}: {each.text}" for each in mistakes)) from None


def run_demo(wishes: Wishes) -> None:
    """Run a demo from start to end.

    Raises:
        HflError: what stopped it, with the remedy.
        KeyboardInterrupt: Ctrl-C or SIGTERM; nothing is left running.
    """
    plan = scenario(wishes.to_config())
    _check(plan)
    console = Console(stderr=wishes.as_json)
    if wishes.out is not None:
        _make_folder(wishes.out)
    with signals.as_interrupt(), tempfile.TemporaryDirectory(prefix="hfl-demo-") as directory:
        try:
            _Demo(plan, wishes, console, Path(directory)).run()
        except KeyboardInterrupt:
            console.print("Interrupted: everything was stopped.")
            raise


class _Demo:
    def __init__(self, plan: Scenario, wishes: Wishes, console: Console, directory: Path) -> None:
        self._plan, self._wishes, self._console = plan, wishes, console
        self._federation = LocalFederation(plan.run, directory, is_metered=True, device_metrics=True)
        self._wake = threading.Event()
        self._per_round: list[Bytes] = []
        self._reported: set[str] = set()

    def run(self) -> None:
        run, console = self._plan.run, self._console
        started_s = time.monotonic()
        with ExitStack() as stack:
            stack.callback(self._stop)
            console.print(
                f"Starting {1 + len(run.farms)} Mosquitto brokers, 1 cloud, {len(run.farms)} edges and "
                f"{len(run.clients)} devices on {run.task['name']} ..."
            )
            with signals.held_back():
                self._federation.start_brokers()
                viewer = Viewer(self._federation.account("viewer"), run.federation, self._wake.set)
                stack.callback(viewer.close)
                viewer.open()
            self._print_explorer()
            with signals.held_back():
                baselines = Baselines(self._plan) if self._plan.has_alone else None
                if baselines is not None:
                    stack.callback(baselines.close)
                    baselines.start()
                self._federation.start_farms()
            self._follow(viewer.fleet)
            seconds = time.monotonic() - started_s
            alone = self._alone(baselines)
            if self._wishes.hold:
                self._finish(viewer.fleet, seconds, alone)
                console.print("Everything stays up until Ctrl-C: look around.")
                self._hold(viewer.fleet)
                return
            self._federation.stop_nodes()
            self._wait_for_farewells(viewer.fleet)
            self._finish(viewer.fleet, seconds, alone)

    # -------------------------------------------------------------- while it runs

    def _follow(self, fleet: Fleet) -> None:
        """Show progress until the cloud has ended. It starts when all others are there.

        A cloud that came first would run its first rounds with whoever is up: equal seeds would not give equal models.
        """
        with self._shown(fleet) as look:
            give_up_s = time.monotonic() + READY_S
            while (missing := self._missing(fleet)) and time.monotonic() < give_up_s:
                look()
            if missing:
                self._console.print(
                    f"The run starts without {', '.join(missing)}, not there after {READY_S:g} s: "
                    "the same seed may give another model."
                )
            with signals.held_back():
                self._federation.start_cloud()
            while self._federation.check_cloud() is None:
                look()

    @contextmanager
    def _shown(self, fleet: Fleet) -> Iterator[Callable[[], None]]:
        """Yield what waits for news and shows them: in a live table, or else as one line for each global round."""
        if self._wishes.as_json or not self._console.is_terminal:

            def say() -> None:
                if self._look(fleet):
                    self._console.print(self._line(fleet))

            yield say
            return
        with Live(console=self._console, refresh_per_second=4, transient=False) as live:

            def draw() -> None:
                self._look(fleet)
                most, width = max(8, self._console.height - 8), self._console.width
                live.update(table(fleet, time.monotonic(), title=self._title(fleet), most=most, width=width))

            yield draw

    def _missing(self, fleet: Fleet) -> list[str]:
        """Return the edges and clients that are not there yet; those whose process has ended will not come."""
        run = self._plan.run
        gone = [name for name, process in self._federation.processes.items() if process.poll() is not None]
        return [
            path
            for path in (*(f"cloud/{farm.name}" for farm in run.farms), *run.clients)
            if not _is_present(fleet, path) and not any(fnmatchcase(path, name) for name in gone)
        ]

    def _look(self, fleet: Fleet) -> bool:
        """Wait for news; take the bytes down when a global round has closed; returns whether one has."""
        self._wake.wait(0.25)
        self._wake.clear()
        for name, process in self._federation.processes.items():
            status = process.poll()
            if status is not None and name != "cloud" and name not in self._reported:
                self._reported.add(name)
                log = children.log_tail(self._federation.log_path(name))
                self._console.print(f"{name} {children.end_of(status)}; the others go on{log}", markup=False)
        closed = _rounds_closed(fleet, self._plan.run.rounds)
        has_closed = closed > len(self._per_round)
        while len(self._per_round) < closed:
            self._per_round.append(self._bytes())
        return has_closed

    def _title(self, fleet: Fleet) -> str:
        return f"{self._plan.run.task['name']}: {self._line(fleet)}"

    def _line(self, fleet: Fleet) -> str:
        if "cloud" not in fleet or not fleet["cloud"].metrics:
            return "waiting for everybody to come up"
        view = fleet["cloud"]
        scores = "  ".join(f"{name} {value:.5f}" for name, value in view.scores.items())
        done = f"round {len(self._per_round)} of {self._plan.run.rounds}"
        moved = self._bytes()
        return f"{done}  {scores}  WAN {size(moved.wan_up)} up, {size(moved.wan_down)} down"

    def _bytes(self) -> Bytes:
        """Return all bytes so far, as the relays count them: on the bridges, and between devices and their brokers."""
        wan_up, wan_down = self._federation.wan_bytes()
        lan_up, lan_down = self._federation.lan_bytes()
        return Bytes(wan_up=wan_up, wan_down=wan_down, lan_up=lan_up, lan_down=lan_down)

    def _alone(self, baselines: Baselines | None) -> Alone | None:
        if baselines is None:
            return None
        if baselines.done < baselines.of:
            self._console.print(
                f"Training each device's model alone, to compare: {baselines.done} of {baselines.of} ..."
            )
        alone = baselines.wait(BASELINES_S)
        if alone is None:
            self._console.print(f"The models trained alone were not ready {BASELINES_S:g} s after the run: left out.")
        return alone

    def _wait_for_farewells(self, fleet: Fleet) -> None:
        """Wait until the last figures of all nodes are here."""
        give_up_s = time.monotonic() + LEAVE_S
        while time.monotonic() < give_up_s:
            if all(view.state is not None and not view.state.is_present for view in fleet.nodes() if view.role):
                return
            self._wake.wait(0.2)
            self._wake.clear()

    # -------------------------------------------------------------- the end

    def _finish(self, fleet: Fleet, seconds: float, alone: Alone | None) -> None:
        outcome = self._report(fleet, seconds, alone)
        if self._wishes.out is not None:
            outcome = report.write(outcome, self._wishes.out, self._federation.journals())
        if self._wishes.as_json:
            # The federation's own folder, and the model in it, are gone when this ends.
            kept = outcome if self._wishes.out is not None else replace(outcome, model=None)
            sys.stdout.write(json.dumps(kept.as_json(), indent=2) + "\n")
            return
        report.show(outcome, self._console)
        if self._wishes.out is not None:
            self._console.print(f"The model lies in {outcome.model}, with summary, journal and plot.")
        elif self._wishes.hold:
            self._console.print(f"The model lies in {outcome.model} while this runs.")
        else:
            self._console.print("The model was kept nowhere: `hfl demo --out DIR` keeps model, summary, journal, plot.")

    def _report(self, fleet: Fleet, seconds: float, alone: Alone | None) -> Report:
        summary_path = self._federation.out / "summary.json"
        if not summary_path.exists():
            raise RunFailed("the cloud ended without a result")
        summary = json.loads(summary_path.read_text())
        plan = self._plan
        metric, history = summary["metric"]["name"], summary["history"]
        central = f"{plan.unseen}_{metric}" if plan.unseen else ""
        # A task whose devices hold nothing out is judged by the cloud's own test set.
        own = metric if plan.has_held_out else central
        persistence = {name: measure().value for name, measure in plan.persistence.items()}
        scores = Scores(
            name=metric,
            higher_is_better=summary["metric"]["higher_is_better"],
            final=history[-1].get(own),
            history=[scores.get(own) for scores in history[1:]],
            persistence=persistence.get(""),
            alone=alone.own if alone else None,
            unseen=history[-1].get(central) if own != central else None,
            unseen_persistence=persistence.get("unseen"),
            unseen_alone=alone.unseen if alone else None,
        )
        return Report(
            task=summary["task"],
            seed=summary["seed"],
            rounds=summary["rounds"],
            seconds=seconds,
            scores=scores,
            bytes=self._bytes(),
            per_round=self._per_round,
            nodes=report.rows(fleet.nodes(), self._federation.journals()),
            model=Path(summary["model"]),
        )

    def _print_explorer(self) -> None:
        port = self._federation.brokers["cloud"].port
        secret = self._federation.secret_path("viewer")
        self._console.print(
            f"MQTT Explorer: host {HOST}, port {port}, user viewer, the password is in {secret}\n"
            f"Or: hfl watch --federation {self._plan.run.federation} --port {port} --password-file {secret}",
            soft_wrap=True,
            highlight=False,
        )

    def _hold(self, fleet: Fleet) -> None:
        while True:
            self._look(fleet)

    def _stop(self) -> None:
        """End everything; from here to the end of the demo nothing interrupts."""
        signals.ignore()
        self._federation.stop()


def _check(plan: Scenario) -> None:
    """Say now what a federation would only find out over and over in every process.

    Raises:
        ConfigError: a farm has no device.
        TaskError: the data is not there and cannot be fetched.
    """
    run = plan.run
    empty = [farm.name for farm in run.farms if not farm.devices]
    if empty:
        raise ConfigError(f"{len(run.clients)} devices do not fill {len(run.farms)} farms: each needs one")
    if run.task["name"] == "mnist":  # soil-moisture brings its data
        from hfl_mqtt.learning.tasks import load_task

        with redirect_stdout(sys.stderr):  # a download tells its progress
            load_task(dict(run.task)).train_data(dict(run.farms[0].devices[0].data))


def _is_present(fleet: Fleet, path: str) -> bool:
    state = fleet[path].state if path in fleet else None
    return state is not None and state.is_present


def _make_folder(path: Path) -> None:
    if find_spec("matplotlib") is None:
        raise ConfigError("--out: a plot is drawn there, which needs matplotlib: pip install 'hfl-mqtt[plot]'")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: cannot make the folder {path}: {error.strerror}") from None


def _option(path: KeyPath) -> str:
    return f"--{path[0]}".replace("_", "-") if path else "these options"


def _rounds_closed(fleet: Fleet, at_most: int) -> int:
    """Return how many global rounds have closed: the cloud's metrics name the last."""
    name = str(fleet["cloud"].metrics.get("round", "")) if "cloud" in fleet else ""
    return min(int(name[1:]), at_most) if name[1:].isdigit() else 0


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
