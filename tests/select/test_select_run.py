"""Runs of selection: budgets, settings, folders that go on after a kill, and policies."""

import csv
import json
import re

import pytest

import swaa.select.run as selecting
from families import tiny_model
from select_models import own_answers, scorer
from swaa.recipes import load_recipe
from swaa.report.pareto import non_dominated
from swaa.select import Calibration
from swaa.select.plan import LayerPlan
from swaa.select.policy import Grid, PolicySearch, front_of
from swaa.select.run import SelectSettings, counts_of
from swaa.select.run_policy import PolicySettings, search_policies

LENGTH = 900
RECIPE = load_recipe("sinks-fa-decode").replace(window=32)


# Selecting


def settings(**changes):
    calibration = Calibration(LENGTH, samples=3)
    return SelectSettings(**({"calibration": calibration, "test_samples": 2, "batch_size": 2} | changes))


@pytest.mark.parametrize(
    ("budgets", "counts"), [((4,), [4]), ((0.25, 0.5), [8, 15]), ((15, 1, 2, 0.5), [1, 2, 15]), ((0, 1.0), [0, 30])]
)
def test_budgets(budgets, counts):
    assert counts_of(budgets, 30) == counts


@pytest.mark.parametrize("budget", [-1, 31])
def test_budgets_out_of_range(budget):
    with pytest.raises(ValueError, match="30 layers of this model can slide, use 0 to 30"):
        counts_of((budget,), 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("nil",)}, "Did you mean 'nll'"),
        ({"methods": ()}, "at least one method"),
        ({"tasks": ("ruler-vt",)}, "has no answers to force"),
        ({"test_samples": -1}, "use 0 or more"),
        ({"batch_size": 0}, "use 1 or more"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_a_curve_has_its_baseline():
    assert settings(budgets=(1, 2)).methods == ("periodic", "nll")
    assert settings(budgets=(1,)).methods == ("nll",)


def files(folder):
    """Every file's content, less what depends on the clock and the command."""
    found = {}
    for path in sorted(folder.iterdir()):
        text = path.read_text()
        text = re.sub(r'("seconds": )[0-9.]+', r"\1", text)
        if path.suffix == ".csv":
            rows = [{key: x for key, x in row.items() if key != "seconds"} for row in csv.DictReader(text.splitlines())]
            found[path.name] = rows
        elif path.suffix == ".jsonl":
            found[path.name] = sorted(text.splitlines())
        elif path.name != "run.json":
            found[path.name] = text
    return found


class Stop(Exception):
    pass


def test_a_complete_folder_is_not_computed_again(tmp_path, model, tokenizer):
    wanted = settings(methods=("lazy", "nll"), budgets=(1,))  # `lazy` keeps nothing among the scores
    whole = selecting.select(model, tokenizer, RECIPE, wanted, tmp_path, name="tiny")
    before = files(tmp_path)

    def forbidden(*args):
        raise AssertionError("computed again")

    handle = model.model.layers[0].register_forward_pre_hook(forbidden)
    again = selecting.select(model, tokenizer, RECIPE, wanted, tmp_path, name="tiny")
    handle.remove()
    assert again == whole
    assert files(tmp_path) == before


def test_killed_and_continued(tmp_path, model, tokenizer):
    wanted = settings(methods=("nll", "greedy", "lazy"), budgets=(1, 2))
    whole = selecting.select(model, tokenizer, RECIPE, wanted, tmp_path / "whole", name="tiny")
    calls, left = [], [0]

    def stop(text, done, total):
        calls.append((done, total))
        left[0] -= 1
        if not left[0]:
            raise Stop

    for number in (2, 9, 40):
        left[0] = number
        with pytest.raises(Stop):
            selecting.select(model, tokenizer, RECIPE, wanted, tmp_path / "broken", name="tiny", progress=stop)
    assert all(0 <= done <= total for done, total in calls)
    again = selecting.select(model, tokenizer, RECIPE, wanted, tmp_path / "broken", name="tiny")
    assert files(tmp_path / "broken") == files(tmp_path / "whole")
    assert [plan.layers for plan in again.plans.values()] == [plan.layers for plan in whole.plans.values()]
    assert len(json.loads((tmp_path / "broken" / "run.json").read_text())["sessions"]) == 4

    methods = ["full attention", "no full layer", *("periodic", "nll", "greedy", "lazy") * 2]
    assert [row["method"] for row in whole.rows] == methods
    assert [row["full_layers"] for row in whole.rows[:2]] == [4, 0]
    assert set(whole.plans) == {f"{method}-{budget}" for method in methods[2:] for budget in (1, 2)}
    for name, plan in whole.plans.items():
        loaded = LayerPlan.load(tmp_path / "whole" / f"{name}.json")
        assert (loaded.layers, loaded.scores, loaded.config) == (plan.layers, plan.scores, plan.config)
        assert loaded.config == RECIPE.config.replace(full_layers=plan.layers)
    row = whole.rows[3]
    best = whole.plans["nll-1"]
    assert row["calibration_nll"] == best.measured["calibration_nll"]
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]

    with pytest.raises(ValueError, match=r"another selection \(other: recipe\)"):
        selecting.select(model, tokenizer, RECIPE.replace(sinks=3), wanted, tmp_path / "whole")
    more = settings(methods=("nll",), budgets=(3,))
    selecting.select(model, tokenizer, RECIPE, more, tmp_path / "whole", name="tiny")
    assert (tmp_path / "whole" / "nll-3.json").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no selection"):
        selecting.select(model, tokenizer, RECIPE, wanted, tmp_path / "other")


def test_without_held_out_samples(tmp_path, model, tokenizer):
    outcome = selecting.select(model, tokenizer, RECIPE, settings(test_samples=0), tmp_path / "run")
    assert "accuracy" not in outcome.rows[0]
    assert list(outcome.plans["nll-4"].layers) == [0, 1, 2, 3]


# Policies


def test_non_dominated():
    points = {"a": (1, 2, 3), "b": (1, 2, 3), "c": (2, 2, 3), "d": (0, 9, 9), "e": (1, 1, 4)}
    assert non_dominated(points) == ["a", "d", "e"]


def search(limits=None, trials=12, length=400):
    model = tiny_model()
    policies = PolicySearch(scorer(model, own_answers(model, count=3), batch_size=3), length, Grid.of(64, 4), **limits)
    return policies, {str(number): trial for number, trial in enumerate(policies.run(trials))}


@pytest.mark.parametrize("limits", [{}, {"max_kv": 0.6}, {"max_flops": 0.75, "max_kv": 0.9}])
def test_policies_are_within_their_limits(limits):
    policies, trials = search(limits)
    assert len(trials) == 12
    assert len({str(trial.config) for trial in trials.values()}) == 12
    assert all(policies.cost(trial.config) == trial.cost for trial in trials.values())
    assert max(trial.cost.kv for trial in trials.values()) <= limits.get("max_kv", 1)
    assert max(trial.cost.flops for trial in trials.values()) <= limits.get("max_flops", 1)
    if "max_kv" in limits:
        assert not any(trial.config.fa_decode is True for trial in trials.values())
    front = front_of(trials)
    costs = {name: (x.cost.flops, x.cost.kv, round(x.score.nll, 2)) for name, x in trials.items()}
    for name in front:
        better = [x for x in costs.values() if all(a <= b for a, b in zip(x, costs[name], strict=True))]
        assert set(better) == {costs[name]}
    assert [costs[name][0] for name in front] == sorted(costs[name][0] for name in front)
    best = min(trials, key=lambda name: trials[name].score.nll)
    assert round(trials[best].score.nll, 2) in {costs[name][2] for name in front}


def test_the_search_ends_when_all_is_tried():
    policies, trials = search({"max_flops": 0.5, "max_kv": 0.1}, trials=500)
    assert 0 < len(trials) <= len(policies.allowed) < 200


def test_impossible_limits():
    with pytest.raises(ValueError, match=r"the cheapest needs 0\.\d+ of full attention's prefill"):
        search({"max_kv": 0.001})
    for values in ({"max_kv": 0.0}, {"max_flops": 1.5}, {"trials": 0}):
        with pytest.raises(ValueError, match=r"give a fraction|use 1 or more"):
            PolicySettings(**values)


def test_policy_files(tmp_path, model, tokenizer):
    wanted = settings()
    limits = PolicySettings(max_kv=0.7, trials=6)
    recipes, rows = search_policies(model, tokenizer, limits, wanted, tmp_path / "run", name="tiny")
    assert rows[0]["recipe"] == "full"
    assert (rows[0]["flops"], rows[0]["kv"]) == (1, 1)
    assert sum(row["on_front"] for row in rows) == len(recipes) > 0
    for recipe in recipes:
        loaded = load_recipe(tmp_path / "run" / f"{recipe.name}.json")
        assert loaded.config == recipe.config
        assert loaded.plan["kv"] <= 0.7
        assert loaded.plan["accuracy"] is not None
    before = files(tmp_path / "run")

    def forbidden(*args):
        raise AssertionError("computed again")

    handle = model.model.layers[0].register_forward_pre_hook(forbidden)
    search_policies(model, tokenizer, limits, wanted, tmp_path / "run", name="tiny")
    handle.remove()
    assert files(tmp_path / "run") == before
