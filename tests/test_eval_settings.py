"""Settings of an evaluation run: what is refused, where data sets come from, and the cells."""

import pytest

from eval_runs import registering
from swaa.runs import Cell, RunSettings
from swaa.tasks import GROUPS, TASKS


@pytest.fixture
def echo(monkeypatch):
    """Registers a task of known words."""
    return registering(monkeypatch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("nedle",)}, "Did you mean 'needle'"),
        ({"tasks": ()}, "tasks: name at least one"),
        ({"tasks": ("needle", "needle")}, "'needle' is named twice"),
        ({"lengths": (0,)}, "lengths: 0 is no number"),
        ({"samples": 0}, "samples=0: use 1 or more"),
        ({"reasoning": ("thinkin",)}, "Did you mean 'thinking'"),
        ({"reasoning": ("prompt",), "scoring": "forced"}, "leaves no room for a chain of thought"),
        ({"scoring": "fre"}, "use one of forced, free"),
        ({"prefill_runs": -1}, "use 0 or more"),
        ({"data": {"ruler-qa-1": "x.json"}}, "not among the tasks"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RunSettings(**changes)


def test_data_sets_name_their_flag(monkeypatch, echo):
    echo(path=None)
    with pytest.raises(ValueError, match="give it by --data echo=PATH"):
        RunSettings(("echo",)).task("echo")
    assert RunSettings(("echo",), data={"echo": "x.json"}).task("echo").path == "x.json"
    with pytest.raises(ValueError, match="'needle' makes its own samples"):
        RunSettings(("needle",), data={"needle": "x.json"}).task("needle")


def test_cells_and_groups():
    settings = RunSettings(("needle", "perplexity"), (8, 4), reasoning=("none", "prompt"))
    assert settings.scoring == "free"
    assert settings.cells()[:3] == [
        Cell("needle", 8, "none"),
        Cell("needle", 8, "prompt"),
        Cell("perplexity", 8, "none"),
    ]
    assert [cell.length for cell in settings.cells()] == [8] * 3 + [4] * 3
    assert RunSettings(("ruler", "needle")).tasks == (*GROUPS["ruler"], "needle")
    assert not [name for name in GROUPS["ruler"] if hasattr(TASKS[name], "path")]
