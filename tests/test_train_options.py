"""Options of `swaa train` that are wrong, do not go together, or need what is not there: one line, before any work."""

import json
import sys

import pytest
import transformers.integrations.integration_utils as integrations
from typer.testing import CliRunner

from swaa.cli import app
from swaa.distill import Sampling
from swaa.train import Lora, Objective, TrainSettings
from test_train_run import ROWS, train


@pytest.fixture
def refused(base, tmp_path, monkeypatch):
    """Run `swaa train` with more words, and return its error; no model is loaded."""
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    monkeypatch.setattr("swaa.cli.loading.load", None)

    def run(*more):
        words = ["train", "-m", base, "-d", data, "-o", tmp_path / "out", "--window", 6, *more]
        result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
        assert result.exit_code == 2, result.output
        assert not (tmp_path / "out").exists()
        assert len(result.stderr.splitlines()) == 1
        return result.stderr

    return run


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Lora, "alpha"),
        (Lora, "dropout"),
        (lambda **changes: Objective("kl", **changes), "kl_weight"),
        (lambda **changes: Objective("kl", **changes), "temperature"),
        (TrainSettings, "learning_rate"),
        (TrainSettings, "epochs"),
        (TrainSettings, "warmup"),
        (Sampling, "temperature"),
        (Sampling, "top_p"),
    ],
)
def test_numbers_are_finite(make, name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        make(**{name: value})


def test_a_number_that_is_none_is_refused_at_once(refused):
    assert "LoRA: alpha=nan: use a number above 0" in refused("--alpha", "nan")
    assert "learning_rate=inf: use a number above 0" in refused("--lr", "inf")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--rank", 16], "--rank"),
        (["--alpha", 3], "--alpha"),
        (["--rslora"], "--rslora"),
        (["--targets", "q_proj,k_proj,v_proj"], "--targets"),
        (["--targets", "q_proj", "--rank", 4], "--rank, --targets"),
    ],
)
def test_all_weights_have_no_options_of_lora(refused, more, named):
    assert f"{named}: --full trains all weights, without LoRA: drop --full, or leave " in refused("--full", *more)


def test_targets_of_lora_are_named(refused):
    assert "give a rank of 1 or more, and a target" in refused("--targets", "")


def test_evaluations_need_something_to_evaluate_on(refused):
    assert "--eval-steps: there is nothing to evaluate on: add --eval-data or --needles" in refused("--eval-steps", 5)


# What transformers reports to


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("comet_ml", "comet-ml")])
def test_a_missing_integration_is_named_before_a_model_is_loaded(refused, monkeypatch, name, package):
    monkeypatch.setattr(integrations, "is_tensorboard_available", lambda: False)
    monkeypatch.setattr(integrations, "_is_comet_installed", False)
    assert f"--report-to {name} needs {package}: pip install {package}" in refused("--report-to", name)


def test_an_integration_that_breaks_when_it_is_imported(refused, monkeypatch):
    monkeypatch.setattr(integrations, "is_wandb_available", lambda: True)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "--report-to wandb needs wandb: pip install wandb" in refused("--report-to", "wandb")


def test_other_reasons_of_an_integration(refused, monkeypatch):
    monkeypatch.setattr(integrations, "is_kubeflow_available", lambda: False)
    assert "report_to='kubeflow': KubeflowCallback requires KUBEFLOW" in refused("--report-to", "kubeflow")
    assert "report_to: tensorbord is not supported, only azure_ml" in refused("--report-to", "tensorbord")


def test_integrations_in_python_too(base, tmp_path, monkeypatch):
    monkeypatch.setattr(integrations, "is_wandb_available", lambda: False)
    with pytest.raises(ModuleNotFoundError, match="needs wandb: pip install wandb"):
        train(base, tmp_path / "out", report_to=("wandb",))
    assert not (tmp_path / "out").exists()
    TrainSettings(report_to=("none",)).check_packages()
