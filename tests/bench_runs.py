"""Runs of `swaa bench` on a tiny model, and the floors and the effort of its tests."""

import csv
import json

import torch
from typer.testing import CliRunner

from swaa.bench import models
from swaa.bench.floors import Floors
from swaa.bench.models import configuration, random_model
from swaa.bench.timing import Effort
from swaa.cli import app
from swaa.registry import Registry

CPU = torch.device("cpu")
FLOORS = Floors(1e9, 1e9, 8, 8)
ONCE = Effort(repeats=1, seconds=0, warmup=0)
TINY_ROW = {
    "model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
}  # fmt: skip


def make_tiny(monkeypatch):
    """Gives a test a configuration to name, and floors that take no time."""
    monkeypatch.setattr(models, "CONFIGURATIONS", Registry("configuration", {"tiny": TINY_ROW}))
    monkeypatch.setattr("swaa.bench.floors._SIZES", {"cpu": (64, 4096)})
    monkeypatch.setattr("swaa.bench.floors._EFFORT", Effort(1, 0, 1))


def run(folder, *args):
    command = ["bench", *map(str, args), "--config", "tiny", "--device", "cpu", "--dtype", "float32", "-o", folder]
    result = CliRunner().invoke(app, [str(x) for x in command])
    assert result.exit_code == 0, result.output
    (made,) = folder.iterdir()
    with (made / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    content = json.loads((made / "results.json").read_text())
    assert len(content["rows"]) == len(table)
    assert {"command", "settings", "environment", "floors", "rows"} == set(content)
    return content, {path.name for path in made.iterdir()}, result


def tiny(seed=0):
    torch.manual_seed(seed)
    return random_model(configuration("tiny"), CPU, torch.float32)
