"""Trained adapters in a comparison: their rows against the parts measured one by one."""

import csv
import json

import pytest
import torch
from typer.testing import CliRunner

import swaa
from families import tiny_model
from swaa.adapters import add_adapter, read_adapter
from swaa.cli import app
from swaa.errors import ModelError
from swaa.evaluate import perplexity, score_answers
from swaa.models import load_model
from swaa.prose import prose
from swaa.tasks import TASKS
from swaa.train import Lora, Objective, TrainSettings, fine_tune, make_examples
from training import CHATML, VOCABULARY, tiny_tokenizer

LENGTH = 330
CONFIG = swaa.SWAAConfig(window=24, sinks=3, full_layers=[2], fa_decode=True)
OTHER = swaa.SWAAConfig(window=30, full_layers=[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and two adapters for it."""
    path = tmp_path_factory.mktemp("adapters")
    tokenizer = tiny_tokenizer(CHATML)
    tiny_model(vocab_size=len(VOCABULARY)).save_pretrained(path / "base")
    tokenizer.save_pretrained(path / "base")
    examples = make_examples([{"prompt": "number?", "answer": "seven"}, {"text": "plain words"}], tokenizer)[0]
    for name, config in (("one.half", CONFIG), ("two", OTHER)):
        model, _ = load_model(path / "base", dtype="float32", device="cpu")
        settings = TrainSettings(Lora(rank=4), Objective("kl"), max_steps=2, learning_rate=3e-2, cpu=True)
        fine_tune(swaa.adapt(model, config), tokenizer, examples, path / name, settings, base=str(path / "base"))
    return path


@pytest.fixture(autouse=True)
def short_book(monkeypatch):
    monkeypatch.setattr("swaa.tasks.perplexity.prose", lambda split: prose(split)[:5000])


def run(folder, *words):
    common = ["--length", LENGTH, "--samples", 2, "--dtype", "float32", "--device", "cpu"]
    words = ["compare", *words, *common, "-o", folder / "results"]
    return CliRunner().invoke(app, [str(word) for word in words])


def measured(model):
    tokenizer = tiny_tokenizer(CHATML)
    samples = TASKS["needle"].samples(tokenizer, length=LENGTH, count=2, seed=0)
    windows = TASKS["perplexity"].samples(tokenizer, length=LENGTH, count=3, seed=0)
    nll = sum(answer.nll for answer in score_answers(model, tokenizer, samples)) / 2
    return nll, torch.tensor(list(perplexity(model, windows))).mean().exp().item()


def test_rows_of_adapters_are_what_their_parts_measure(folder):
    result = run(folder, "--adapter", folder / "one.half", "-a", folder / "two", "-r", "full,naive", "--window", 40)
    assert result.exit_code == 0, result.output
    (out,) = (folder / "results").iterdir()
    rows = {row["recipe"]: row for row in csv.DictReader((out / "table.csv").read_text().splitlines())}
    own = [f"{name}{kind}" for name in ("one.half", "two") for kind in (" untrained", "", " full")]
    assert list(rows) == ["full", "naive", *own]
    original, _ = load_model(folder / "base", dtype="float32", device="cpu")
    models = {
        "full": original,
        "one.half": swaa.load(folder / "one.half").eval(),
        "two": swaa.load(folder / "two").eval(),
        "two full": swaa.restore(swaa.load(folder / "two")).eval(),
    }
    for name, model in models.items():
        nll, expected = measured(model)
        assert float(rows[name]["nll"]) == pytest.approx(nll, rel=1e-3)
        assert float(rows[name]["perplexity"]) == pytest.approx(expected, rel=1e-3)
    nll, expected = measured(swaa.adapt(original, CONFIG))
    assert float(rows["one.half untrained"]["nll"]) == pytest.approx(nll, rel=1e-3)
    assert float(rows["one.half untrained"]["perplexity"]) == pytest.approx(expected, rel=1e-3)
    assert len({row["nll"] for row in rows.values()}) == len(rows)
    # How each was trained is said, and written down.
    line = next(line for line in result.stdout.splitlines() if line.startswith("two: "))
    assert "2 steps on 2 samples, loss kl, LoRA of rank 4 on q_proj, k_proj, v_proj: " in line
    content = json.loads((out / "results.json").read_text())
    assert content["model"] == str(folder / "base")
    assert set(content["adapters"]) == {"one.half", "one.half full", "two", "two full"}
    assert content["adapters"]["two"].startswith("2 steps on 2 samples")


def test_a_recipe_that_is_there_already_has_one_row(folder, tmp_path):
    CONFIG.save(tmp_path / "same.json")
    result = run(tmp_path, "--adapter", folder / "one.half", "-r", tmp_path / "same.json")
    assert result.exit_code == 0, result.output
    (out,) = (tmp_path / "results").iterdir()
    names = [row["recipe"] for row in csv.DictReader((out / "table.csv").read_text().splitlines())]
    assert names == ["full", "same", "one.half", "one.half full"]


def test_several_adapters_on_one_model(folder):
    model, _ = load_model(folder / "base", dtype="float32", device="cpu")
    for name in ("one.half", "two"):
        model = add_adapter(model, folder / name, read_adapter(folder / name).key)
    assert set(model.peft_config) == {"one-half", "two"}


def test_what_is_no_adapter_is_refused(folder, tmp_path):
    assert read_adapter(folder / "two").config == OTHER
    with pytest.raises(ModelError, match="holds no adapter: name a folder that `swaa train` wrote"):
        read_adapter(folder / "base")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    with pytest.raises(ModelError, match=r"swaa_config\.json is missing"):
        read_adapter(tmp_path)
    (tmp_path / "swaa_config.json").write_text("{}")
    assert read_adapter(tmp_path).training == "training not recorded"
    result = run(tmp_path, "--adapter", tmp_path, "-a", folder / "two")
    assert result.exit_code == 2
    assert "belong to 2 models" in result.stderr
    result = run(tmp_path, "--adapter", folder / "two", "-a", folder / "two")
    assert "several are called 'two" in result.stderr


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("train.json", "{}", "is no record of `swaa train` ('settings' is missing): restore it, or move it away"),
        ("train.json", '{"settings": []}', "is no record of `swaa train` (list indices"),
        ("train.json", "", "Expecting value: line 1"),
        ("adapter_config.json", "{", "Expecting property name"),
        ("adapter_config.json", "[]", "holds no JSON object"),
        ("swaa_config.json", "", "Expecting value: line 1"),
        ("swaa_config.json", '{"windw": 3}', "is no adaptation: "),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, wrong):
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    (path / "swaa_config.json").write_text("{}")
    (path / name).write_text(content)
    result = run(tmp_path, "--adapter", path)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert str(path / name) in result.stderr
    assert wrong in result.stderr
