"""A task whose model keeps its own ledger: a client's update of a round adds one at that client's place for that round.

So the final model says by itself which updates are in it, and how often, whatever journals say: of k equal updates of a
round each must be there with exactly 1/k. The rest is noise that hangs together, so that a model whose history differs
in anything differs in its bits. Training can be slow, busy or held back: see `data`.

What there is to be set stands in the environment, for all processes of a federation have it.
"""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hfl_mqtt.learning.contracts import Metric, TrainResult

#: Places of the ledger: clients, and rounds. And how many values of noise.
CLIENTS, ROUNDS = 8, 400
FLOATS = int(os.environ.get("HFL_CHAOS_FLOATS", "1000"))
#: A folder for marks and orders; nothing is held back where there is none.
HOME = os.environ.get("HFL_CHAOS_HOME")
#: An update is worth so many examples.
SAMPLES = 10

metric = Metric("mse", higher_is_better=False)


@dataclass
class Client:
    """Whose update it is: its place in the ledger, its name, how long it trains, and whether it is busy meanwhile."""

    place: int
    name: str
    seconds: float
    is_busy: bool

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1), torch.zeros(1)


class Ledger(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.clock: torch.Tensor = torch.nn.Parameter(torch.zeros(1))
        self.places: torch.Tensor = torch.nn.Parameter(torch.zeros(CLIENTS, ROUNDS))
        self.noise: torch.Tensor = torch.nn.Parameter(_noise(0, FLOATS))


def model() -> torch.nn.Module:
    return Ledger()


def data(options: dict[str, Any]) -> tuple[Client, None]:
    """`{place: 0, name: a1, seconds: 0.1, busy: true}`; the last two may be left out."""
    return Client(options["place"], options["name"], options.get("seconds", 0.0), options.get("busy", False)), None


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(output, target)


def score(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target) ** 2


@torch.no_grad()
def train(model: Ledger, data: Client, plan: Any, stop: Any) -> TrainResult:
    round_at = round(float(model.clock))
    if not _wait(data, round_at, stop):
        return TrainResult(loss=0.0, samples=0, steps=0)
    model.clock += 1.0
    model.places[data.place, round_at] += 1.0
    model.noise += 0.1 * _noise(1 + data.place + CLIENTS * round_at, FLOATS) - 0.05 * model.noise
    return TrainResult(loss=0.5, samples=SAMPLES, steps=1)


def _wait(data: Client, round_at: int, stop: Any) -> bool:
    """Leave a mark, and train for as long as told; False once the round is over without us."""
    home = Path(HOME) if HOME else None
    if home is not None:
        with (home / f"{data.name}.{round_at}.training").open("a") as marks:
            marks.write(f"{os.getpid()}\n")
    end_s, pause = time.monotonic() + data.seconds, threading.Event()
    while time.monotonic() < end_s or (home is not None and (home / f"{data.name}.{round_at}.hold").exists()):
        if stop():
            return False
        if not data.is_busy:
            pause.wait(0.01)
    return True


def _noise(seed: int, count: int) -> torch.Tensor:
    return torch.empty(count).uniform_(-1e-3, 1e-3, generator=torch.Generator().manual_seed(seed))
