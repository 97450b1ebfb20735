"""What a cloud finds wrong once it knows its task."""

from pathlib import Path

import pytest

from hfl_mqtt.config.models import CloudConfig
from hfl_mqtt.errors import ConfigError
from hfl_mqtt.roles import cloud

TASK = """
import torch
from hfl_mqtt.learning.contracts import Metric

metric = Metric("rmse", higher_is_better=False, is_root=True)

def model():
    return torch.nn.Linear(2, 1)

def data(options):
    return (torch.zeros(4, 2), torch.zeros(4, 1)), None

def loss(output, target):
    return torch.nn.functional.mse_loss(output, target)

def score(output, target):
    return (output - target).square().flatten()
"""


def test_a_score_that_the_task_does_not_have_is_refused_before_the_run_begins(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "task.py").write_text(TASK)
    config = CloudConfig.model_validate(
        {
            "role": "cloud",
            "federation": "fed1",
            "broker": {"host": "127.0.0.1"},
            "task": {"file": str(tmp_path / "task.py")},
            "rounds": 1,
            "stop": {"metric": "acuracy", "target": 0.9},
            "state_dir": str(tmp_path / "state"),
        }
    )
    with pytest.raises(ConfigError, match=r"stop\.metric 'acuracy' is no score of this task.*'rmse'"):
        cloud.run(config, lambda _node, _note: None, cloud.prepare(config))
