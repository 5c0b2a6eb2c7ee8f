"""`swaa select`: the files and the table of each method, and what a user gets wrong."""

import csv
import json
import re
import sys

import pytest
from typer.testing import CliRunner

import swaa.report
from swaa.cli import app
from swaa.config import SWAAConfig
from swaa.select import SELECTORS
from swaa.select.plan import LayerPlan

LENGTH = 900


def run(*args):
    return CliRunner().invoke(app, ["select", *map(str, args)])


def test_the_command(tmp_path, folder):
    common = ("-m", folder, "--length", LENGTH, "--samples", 2, "--test-samples", 1, "--batch-size", 2)
    found = run(*common, "--budget", "1,0.5", "--method", "nll-won", "--sinks", 3, "-o", tmp_path / "run")
    assert found.exit_code == 0, found.output
    plan = LayerPlan.load(tmp_path / "run" / "nll-won-2.json")
    assert plan.config == SWAAConfig(LENGTH // 8, 3, plan.layers, fa_decode=True)
    table = [line for line in found.stdout.splitlines() if line.startswith(("  nll-won ", "  periodic "))]
    assert len(table) == 4
    assert found.stdout.count(" full\n") + len(re.findall(r" full +\n", found.stdout)) >= 3
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"curve.png", "scores.png", "curve.csv", "run.json", "periodic-1.json"} <= names


def test_the_command_chooses_heads(tmp_path, folder):
    common = ("-m", folder, "--length", LENGTH, "--samples", 2, "--test-samples", 1, "--batch-size", 2)
    found = run(*common, "--unit", "heads", "--budget", 3, "--method", "nll,backward", "-o", tmp_path / "run")
    assert found.exit_code == 0, found.output
    for method in ("nll", "backward"):
        plan = LayerPlan.load(tmp_path / "run" / f"{method}-heads-3.json")
        config = plan.config
        assert len(plan.chosen) == 3
        assert 2 * len(config.full_layers) + sum(len(heads) for _, heads in config.full_heads) == 3
        assert {(layer, head) for layer, heads in config.full_heads for head in heads} <= set(plan.chosen)
        assert set(plan.scores) == {(layer, head) for layer in range(4) for head in range(2)}
        shown = CliRunner().invoke(
            app, ["inspect", "-m", str(folder), "-r", str(tmp_path / "run" / f"{method}-heads-3.json"), "--json"]
        )
        layers = json.loads(shown.stdout)["layers"]
        assert [row["layer"] for row in layers if row["full_heads"]] == [layer for layer, _ in config.full_heads]
    with (tmp_path / "run" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["full_layers"] for row in rows] == ["4", "0", "1.5", "1.5"]
    # What was scored for heads holds for layers too: the folder goes on.
    again = run(*common, "--budget", 1, "-o", tmp_path / "run")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "run" / "nll-1.json").exists()


@pytest.mark.parametrize("options", [("--budget", "0,2"), ("--method", "policy", "--trials", 2)])
def test_the_command_without_held_out_samples(tmp_path, folder, options, monkeypatch):
    common = ("-m", folder, "--length", LENGTH, "--samples", 1, "--test-samples", 0)
    found = run(*common, *options, "-o", tmp_path / "run")
    assert found.exit_code == 0, found.output
    assert "calibration NLL" in found.stdout
    assert {"curve.png", "policy-kv.png"} & {path.name for path in (tmp_path / "run").iterdir()}
    # And without matplotlib.
    monkeypatch.delattr(swaa.report, "plots")
    monkeypatch.setitem(sys.modules, "swaa.report.plots", None)
    again = run(*common, *options, "-o", tmp_path / "run")
    assert again.exit_code == 0, again.output
    assert "warning: no plots: " in again.stderr


def test_the_command_searches_policies(tmp_path, folder):
    common = ("-m", folder, "--length", LENGTH, "--samples", 1, "--test-samples", 1)
    found = run(*common, "--method", "policy", "--max-kv", 0.8, "--trials", 4, "-o", tmp_path / "run")
    assert found.exit_code == 0, found.output
    assert "policy-1 " in found.stdout
    assert {"policy-flops.png", "policy-kv.png"} <= {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "four"), "write 4, 0.25 or 1,2,4,8"),
        (("--budget", "1.5"), "a fraction of the layers is 0.0 to 1.0"),
        (("--method", "policy,nll"), "name it alone"),
        (("--method", "policy", "--window", 8), "chooses the recipe itself"),
        (("--max-kv", 0.5), "add --method policy"),
        (("--method", "policy", "--unit", "heads"), "chooses whole layers"),
        (("--method", "policy", "--budget", 2), "limit it by --max-flops or --max-kv"),
        (("--trials", 3), "add --method policy"),
        (("--unit", "head"), "use layers or heads"),
        (("--unit", "heads", "--budget", 9, "--length", LENGTH), "8 heads of this model can slide"),
        (("-r", "full"), "no layer can be chosen"),
        (("--budget", 5, "--length", LENGTH), "4 layers of this model can slide"),
        (("--method", "random"), "Known: backward, gates, greedy, lazy, nll, nll-won, periodic, swap"),
    ],
)
def test_what_a_user_gets_wrong(tmp_path, folder, options, message):
    found = run("-m", folder, "-o", tmp_path / "new", *options)
    assert found.exit_code == 2
    assert message in found.stderr
    assert found.stdout == ""
    assert not (tmp_path / "new").exists()


def test_every_method_says_what_it_does():
    from swaa.cli.select import select

    shown = select.__annotations__["method"].__metadata__[0].help
    for name in SELECTORS:
        assert f"`{name}`" in shown
        assert SELECTORS[name].describe
