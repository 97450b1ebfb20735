"""How a fleet stands at home: papers and their days, who is revoked, and whether all is as the site file says."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from hfl_mqtt.config.site import bridge_account, node_folder
from hfl_mqtt.fleet.authority import Authority
from hfl_mqtt.fleet.holdings import Holding, Standing
from hfl_mqtt.fleet.render import plan
from hfl_mqtt.fleet.sitefile import Home

#: When papers are to be renewed: a board may be away for weeks.
SOON_DAYS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One account's papers, and what to do about them, if anything."""

    holding: Holding
    days_left: int | None
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        issued = self.holding.issued
        return {
            "name": self.holding.subject,
            "kind": self.holding.kind,
            "path": self.holding.path,
            "standing": self.holding.standing.value,
            "serial": issued.serial if issued is not None else None,
            "days_left": self.days_left,
            "remedy": self.remedy or None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A fleet at home: a line for each account that has, or should have, papers."""

    federation: str
    security: str
    lines: tuple[Line, ...]
    #: Files that are not what the site file says, or not there.
    drift: tuple[str, ...]
    #: Nodes that are not in the site any more and whose papers are still good.
    left_behind: tuple[str, ...]

    @property
    def is_in_order(self) -> bool:
        """Whether nothing is to be done."""
        return not (self.drift or self.left_behind or any(line.remedy for line in self.lines))

    def as_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        return {
            "federation": self.federation,
            "security": self.security,
            "is_in_order": self.is_in_order,
            "papers": [line.as_json() for line in self.lines],
            "drift": list(self.drift),
            "left_behind": list(self.left_behind),
        }


def status(home: Home, now_s: float | None = None) -> Status:
    """Look at a fleet's folder; nothing is written.

    Raises:
        ConfigError: as `render.plan`.
    """
    at_s = time.time() if now_s is None else now_s
    made = plan(home)
    drift = [change.path for change in made.changes]
    drift += [
        home.bundle(path).relative_to(home.folder).as_posix() for path in made.bundled if not home.bundle(path).exists()
    ]
    left: list[str] = []
    if made.site.has_certificates:
        known = {(one.kind, one.path) for one in made.held}
        book = Authority.open(home.authority(made.site)).issued
        left = sorted({one.subject for one in book if one.is_live and (one.kind, one.path) not in known})
    return Status(
        federation=made.site.federation,
        security=made.site.security,
        lines=tuple(_line(one, at_s) for one in made.held),
        drift=tuple(drift),
        left_behind=tuple(left),
    )


def _line(one: Holding, now_s: float) -> Line:
    days = int((one.issued.not_after_s - now_s) // 86400) if one.issued is not None else None
    remedy = ""
    if one.standing.is_to_be_issued:
        remedy = "hfl fleet render"
    elif one.standing is Standing.REVOKED:
        remedy = f"take it out of the site file, or let it in again: hfl fleet rotate {one.path}"
    elif one.standing is Standing.AWAITED:
        remedy = (
            f"on the board: hfl device request; here: hfl fleet sign {node_folder(one.path).rpartition('.')[2]}.request"
        )
    elif days is not None and days < SOON_DAYS:
        remedy = f"hfl fleet rotate {one.path}"
    return Line(holding=one, days_left=days, remedy=remedy)


def _path_of(subject: str) -> str:
    """Return whose papers these are, as `hfl fleet revoke` is to be told."""
    return subject.removeprefix("broker ").removeprefix(bridge_account(""))


def text(found: Status) -> str:
    """Return the status for people."""
    counts: dict[str, int] = {}
    for line in found.lines:
        counts[line.holding.standing.value] = counts.get(line.holding.standing.value, 0) + 1
    told = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none: passwords"
    out = [f"{found.federation}, {found.security}. Papers: {told}."]
    days = [line.days_left for line in found.lines if line.days_left is not None]
    if days:
        out.append(f"The first to end does so in {min(days)} days.")
    out += [
        f"{line.holding.subject}: {line.holding.standing.value}"
        + (f", {line.days_left} days left" if line.days_left is not None else "")
        + f" -> {line.remedy}"
        for line in found.lines
        if line.remedy
    ]
    out += [
        f"{name}: its papers are good and it is not in the site -> hfl fleet revoke {_path_of(name)}"
        for name in found.left_behind
    ]
    if found.drift:
        most = 8
        more = f" and {len(found.drift) - most} more" if len(found.drift) > most else ""
        out.append(f"Not as the site file says: {', '.join(found.drift[:most])}{more} -> hfl fleet render")
    if found.is_in_order:
        out.append("All is as the site file says.")
    return "\n".join(out) + "\n"
