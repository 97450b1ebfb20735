"""The systemd unit of a node, by its role: `python -m hfl_mqtt.fleet.unit client`.

One text for all roles, `device_agents/hfl.service`; only its bounds differ.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import resources

from hfl_mqtt.errors import HflError

#: What stands between `@` in the template. Training takes as many cores as `threads:` says, most often one or two; an
#: edge sums what its children send, in one thread; the cloud does that too, and scores the model at times.
_BOUNDS: Mapping[str, Mapping[str, str]] = {
    "client": {"cpu_quota": "200%", "memory_high": "60%", "memory_max": "75%"},
    "edge": {"cpu_quota": "100%", "memory_high": "50%", "memory_max": "60%"},
    "cloud": {"cpu_quota": "200%", "memory_high": "60%", "memory_max": "75%"},
}


def unit(role: str) -> str:
    """Return the text of `hfl.service` for a client, an edge or a cloud.

    Raises:
        HflError: there is no such role.
    """
    if role not in _BOUNDS:
        raise HflError(f"no unit for the role {role[:60]!r}: take one of {', '.join(_BOUNDS)}")
    text = (resources.files("device_agents") / "hfl.service").read_text(encoding="utf-8")
    for name, value in {"role": role, **_BOUNDS[role]}.items():
        text = text.replace(f"@{name}@", value)
    return text


if __name__ == "__main__":
    try:
        sys.stdout.write(unit(sys.argv[1] if len(sys.argv) == 2 else ""))
    except HflError as error:
        sys.exit(str(error))
