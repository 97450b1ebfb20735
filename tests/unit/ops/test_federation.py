"""What a federation on this machine says of its processes."""

import sys
from pathlib import Path

import pytest

from hfl_mqtt.errors import HflError
from hfl_mqtt.ops import children
from hfl_mqtt.ops.federation import LocalFederation, RunPlan


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import signal; signal.raise_signal(9)", "the cloud was killed by SIGKILL; .* is empty"),
        ("import sys; sys.exit('hfl: no quorum')", "the cloud ended with status 1\n    hfl: no quorum"),
    ],
)
def test_a_cloud_that_failed_is_told_of_with_its_status_and_its_last_words(
    tmp_path: Path, code: str, said: str
) -> None:
    federation = LocalFederation(RunPlan(farms=(), task={}, rounds=1, seed=0), tmp_path)
    federation.log_path("cloud").parent.mkdir(parents=True, exist_ok=True)
    process = children.start([sys.executable, "-c", code], federation.log_path("cloud"))
    federation.processes["cloud"] = process
    process.wait(30)
    with pytest.raises(HflError, match=said):
        federation.check_cloud()
