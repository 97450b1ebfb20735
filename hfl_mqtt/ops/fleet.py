"""What the retained JSON topics say of a federation: every node, its state, round, metrics and age."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from hfl_mqtt.errors import BrokerError, Malformed
from hfl_mqtt.ops.journal import plain
from hfl_mqtt.protocol.messages import Info, Metrics, Phase, Quarantined, RoundCall, State, StateName, round_text
from hfl_mqtt.protocol.topics import Channel, Filter, parent, viewer_filter
from hfl_mqtt.protocol.wire import decode
from hfl_mqtt.transport.link import Account, Arrived, Down, LinkEvent, Up
from hfl_mqtt.transport.mqtt import MqttLink

#: A hostile or broken broker shall not fill our memory with nodes.
MAX_NODES = 20_000
_BESIDE = {
    "round", "in", "of", "samples", "seconds", "up_bytes", "down_bytes", "socket_out", "socket_in", "updates",
    "mb_up", "mb_down", "rss_peak_mb", "trainer_peak_mb", "loss", "state_bytes", "fsyncs", "refused",
}  # fmt: skip
#: A cell shows no larger number, and no longer text.
_MOST, _LONGEST = 1e15, 60
#: Most troubles that are told below the table, and characters of one.
_TROUBLES, _TROUBLE = 4, 160
_COLUMNS = ("node", "state", "round", "in", "score", "loss", "up", "down", "age")
_STYLE = {
    StateName.READY: "green",
    StateName.TRAINING: "cyan",
    StateName.SLEEPING: "blue",
    StateName.DISCONNECTED: "dim",
    StateName.LOST: "red",
    StateName.PAUSED: "yellow",
    StateName.HALTED: "bold red",
}


@dataclass(slots=True)
class NodeView:
    """One node as its topics show it."""

    path: str
    seen_s: float
    #: Whether it was heard now, rather than kept by the broker since who knows when.
    is_live: bool = False
    state: StateName | None = None
    #: What it says is wrong.
    reason: str = ""
    #: Which children it does not hear, and why.
    quarantined: dict[str, str] = field(default_factory=dict)
    role: str = ""
    call: RoundCall | None = None
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, float]:
        """The node's scores by metric, without counters and vitals."""
        return {
            name: value
            for name, value in self.metrics.items()
            if name not in _BESIDE and isinstance(value, int | float) and not name.endswith(("_mb", "_c", "_percent"))
        }

    @property
    def troubles(self) -> list[str]:
        """What people should know of it, in its own words."""
        found = [self.reason] if self.reason else []
        refused, why = self.metrics.get("refused"), self.metrics.get("refused_why")
        if isinstance(refused, int) and refused > 0:
            found.append(f"{refused} refused" + (f", the last of {why}" if isinstance(why, str) else ""))
        found += [f"does not hear {child.rpartition('/')[2]}: {why}" for child, why in self.quarantined.items()]
        return found

    def as_json(self, now: float) -> dict[str, Any]:
        """Return the row for a script."""
        return {
            "path": self.path,
            "role": self.role or None,
            "state": self.state.value if self.state else None,
            "reason": self.reason or None,
            "quarantined": self.quarantined,
            "round": self.metrics.get("round"),
            "phase": self.call.phase.value if self.call else None,
            "metrics": self.metrics,
            "age_s": round(now - self.seen_s, 1),
            "is_live": self.is_live,
        }


class Fleet:
    """Everything a viewer's account sees of one federation. `take` is called by one thread, the rest by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[str, NodeView] = {}

    def take(self, event: Arrived, now: float) -> None:
        """Take a message in; junk is passed over."""
        try:
            message, topic = decode(event.frame)
        except Malformed:
            return
        if topic.channel is not Channel.STAT:
            return
        with self._lock:
            view = self._nodes.get(topic.path)
            if view is None:
                if len(self._nodes) >= MAX_NODES:
                    return
                view = self._nodes[topic.path] = NodeView(topic.path, now)
            view.seen_s, view.is_live = now, not event.frame.retain
            match message:
                case State():
                    view.state, view.reason = message.state, message.reason
                case Quarantined():
                    view.quarantined = dict(message.children)
                case Info():
                    view.role = message.role
                case RoundCall():
                    view.call = message
                case Metrics():
                    view.metrics = dict(message.values)
                case _:
                    pass

    def nodes(self) -> list[NodeView]:
        """Return all nodes, parents before children."""
        with self._lock:
            return [self._nodes[path] for path in sorted(self._nodes, key=lambda path: path.split("/"))]

    def __getitem__(self, path: str) -> NodeView:
        with self._lock:
            return self._nodes[path]

    def __contains__(self, path: str) -> bool:
        with self._lock:
            return path in self._nodes


#: Columns that a narrow terminal does without, widest need first: (needed width, names).
_OPTIONAL = ((115, {"loss"}), (95, {"up", "down"}))


def table(fleet: Fleet, now: float, *, title: str | None = None, most: int = 60, width: int = 120) -> Table:
    """Return the live table, of `most` rows; where there are more nodes, the devices of a farm share a row.

    An age with `>` is of a message that the broker had kept: when it was said, nobody knows.
    """
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    left_out = set().union(*(names for needed, names in _OPTIONAL if width < needed))
    kept = [index for index, name in enumerate(_COLUMNS) if name not in left_out]
    for name in (_COLUMNS[index] for index in kept):
        shown.add_column(name, no_wrap=True, justify="left" if name in ("node", "state", "round") else "right")
    nodes = fleet.nodes()
    if len(nodes) <= most:
        rows = [_row(view, now) for view in nodes]
    else:
        above, paths = {parent(view.path) for view in nodes}, {view.path for view in nodes}
        rows = []
        for view in nodes:
            if view.path in above or view.call is not None:
                rows.append(_row(view, now))
                leaves = [leaf for leaf in nodes if parent(leaf.path) == view.path and leaf.path not in above]
                rows += [_folded(leaves, now)] if leaves else []
            elif parent(view.path) not in paths:
                rows.append(_row(view, now))
    for row in rows[:most]:
        shown.add_row(*(row[index] for index in kept))
    if len(rows) > most:
        shown.add_row(f"... and {len(rows) - most} more")
    if not nodes:
        shown.caption = "Nothing has been said in this federation. Is its name right, and do its nodes run?"
    elif troubles := [f"{view.path}: {trouble}" for view in nodes for trouble in view.troubles]:
        more = [f"... and {len(troubles) - _TROUBLES} more"] if len(troubles) > _TROUBLES else []
        shown.caption_justify = "left"
        shown.caption = Text("\n").join(_said(line, _TROUBLE) for line in [*troubles[:_TROUBLES], *more])
    return shown


def _row(view: NodeView, now: float) -> list[str | Text]:
    metrics = view.metrics
    return [
        _said("  " * view.path.count("/") + view.path.rpartition("/")[2]),
        f"[{_STYLE[view.state]}]{view.state.value}[/]" if view.state else "?",
        _said(_round(view)),
        _said(f"{metrics['in']}/{metrics['of']}") if "in" in metrics and "of" in metrics else "",
        _said("  ".join(f"{name} {_number(value, '.4f')}" for name, value in view.scores.items())),
        _number(metrics.get("loss")),
        size(metrics.get("up_bytes")),
        size(metrics.get("down_bytes")),
        _age([view], now),
    ]


def _folded(leaves: list[NodeView], now: float) -> list[str | Text]:
    states = Counter(view.state for view in leaves if view.state is not None)
    said = "  ".join(f"[{_STYLE[state]}]{count} {state.value}[/]" for state, count in sorted(states.items(), key=str))
    return [
        "  " * leaves[0].path.count("/") + f"{len(leaves)} devices",
        said or "?",
        "",
        "",
        "",
        "",
        *(size(sum(_integer(view.metrics.get(name)) for view in leaves)) for name in ("up_bytes", "down_bytes")),
        _age(leaves, now),
    ]


def _age(views: list[NodeView], now: float) -> str:
    last = max(views, key=lambda view: view.seen_s)
    return f"{'' if last.is_live else '> '}{now - last.seen_s:.0f} s"


def size(count: Any) -> str:
    """Return a number of bytes for people.

    >>> size(999), size(1500), size(2_500_000)
    ('999 B', '1.5 kB', '2.5 MB')
    """
    if not isinstance(count, int | float):
        return ""
    if not abs(count) < _MOST:
        return "?"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


class Viewer:
    """A viewer's connection that keeps a `Fleet` up to date in a thread of its own.

    Args:
        account: a broker and an account that may read `hfl/#`.
        federation: what to look at.
        on_message: called after each message, by the viewer's thread.
    """

    def __init__(self, account: Account, federation: str, on_message: Callable[[], None] | None = None) -> None:
        self.fleet = Fleet()
        self.failure: BrokerError | None = None
        self.is_up = False
        #: Why not, or no longer.
        self.reason = ""
        #: The first attempt to connect has ended, one way or the other.
        self.answered = threading.Event()
        #: When the last retained message came, or the connection. Those that come live never end.
        self.retained_s = 0.0
        self._on_message = on_message
        self._queue: queue.SimpleQueue[LinkEvent | None] = queue.SimpleQueue()
        filters = [Filter(topic=viewer_filter(federation), qos=0)]
        self._link = MqttLink(account, filters, self._queue.put, clean=True, client_id="")
        self._thread = threading.Thread(target=self._run, name="viewer", daemon=True)

    def open(self) -> None:
        """Start to look."""
        self._thread.start()
        self._link.open()

    def close(self) -> None:
        """Look away."""
        self._queue.put(None)
        self._thread.join(5)
        self._link.close()

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            match event:
                case Arrived():
                    if event.frame.payload:
                        self.fleet.take(event, time.monotonic())
                    if event.frame.retain:
                        self.retained_s = time.monotonic()
                    self._link.done(event)
                    if self._on_message is not None:
                        self._on_message()
                case Up():
                    self.is_up, self.retained_s = True, time.monotonic()
                    self.answered.set()
                case Down():
                    self.is_up, self.reason = False, event.reason
                    if event.is_fatal:
                        self.failure = BrokerError(event.reason)
                    self.answered.set()
                case _:
                    pass


def _round(view: NodeView) -> str:
    if view.call is not None:
        name = round_text(view.call.round)
        mark = {Phase.OPEN: " open", Phase.CLOSED: "", Phase.FINISHED: " end"}[view.call.phase]
        if view.call.phase is Phase.OPEN and view.metrics.get("round") == name:
            mark = ""  # it has its figures: a close that nobody waits for is not told
        return f"{name}{mark}"
    return str(view.metrics.get("round", ""))


def _number(value: Any, form: str = ".4g") -> str:
    if not isinstance(value, int | float):
        return ""
    return format(value, form) if abs(value) < _MOST else "?"


def _said(text: str, longest: int = _LONGEST) -> Text:
    """Return a node's own words for a cell: no markup, no control characters, and not without end."""
    text = plain(text)
    return Text(text if len(text) <= longest else f"{text[: longest - 1]}…")


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0
