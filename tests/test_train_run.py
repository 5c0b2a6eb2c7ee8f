"""Runs of fine-tuning on tiny models: the Trainer's steps, LoRA, resuming, merging, the command line."""

import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import swaa
from families import tiny_model
from swaa.attaching import adaptation
from swaa.cli import app
from swaa.evaluate import score_answers
from swaa.tasks import TASKS
from swaa.train import Lora, TrainSettings, add_lora, fine_tune, make_examples, merge
from swaa.train.collator import NO_LABEL
from training import CHATML, VOCABULARY, Conversation, reference_gradients, tiny_tokenizer

CONFIG = swaa.SWAAConfig(window=6, sinks=2, full_layers=[3], fa_decode=True)
ROWS = [{"prompt": f"number {i}?", "answer": "yes" if i % 2 else "no"} for i in range(12)]
FAST = {"learning_rate": 3e-2, "accumulate": 1, "batch_size": 4, "log_steps": 1, "cpu": True}
IDS = torch.randint(5, 200, (1, 40), generator=torch.Generator().manual_seed(5))


def load_adapted(base, config=CONFIG):
    return swaa.adapt(AutoModelForCausalLM.from_pretrained(base), config)


def train(base, output, examples=None, config=CONFIG, **changes):
    options = {name: changes.pop(name) for name in ("eval_examples", "needles", "show", "note") if name in changes}
    tokenizer = tiny_tokenizer(CHATML)
    examples = examples or make_examples(ROWS, tokenizer)[0]
    return fine_tune(
        load_adapted(base, config), tokenizer, examples, output, TrainSettings(**(FAST | changes)), **options
    )


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, prompt_length=30, use_cache=False).logits


def weights(model):
    return dict(model.state_dict())


def test_a_step_goes_down_the_gradient_under_explicit_masks(base, tmp_path):
    """Padding, accumulation over batches of unequal answers, and checkpointing, through the Trainer itself."""
    conversations = [Conversation((9 + n, 2 + n), (4, 3), seed=n) for n in range(4)]
    size = {"vocab_size": len(VOCABULARY)}
    options = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    train(
        base,
        tmp_path / "out",
        [c.example for c in conversations],
        lora=None,
        learning_rate=0.1,
        warmup=0.0,
        batch_size=2,
        accumulate=2,
        gradient_checkpointing=True,
        more=options,
    )
    gradients = reference_gradients(conversations, CONFIG, **size)
    tokens = sum(int((c.labels() != NO_LABEL).sum()) for c in conversations)
    before, after = weights(tiny_model(**size)), weights(swaa.load(tmp_path / "out"))
    for name, gradient in gradients.items():
        expected = before[name] - 0.1 * gradient / tokens
        torch.testing.assert_close(after[name], expected, atol=1e-5, rtol=1e-5)


def test_lora_learns_and_leaves_the_rest_alone(base, tmp_path):
    examples = make_examples(ROWS, tiny_tokenizer(CHATML))[0]
    needles = TASKS["needle"].samples(tiny_tokenizer(CHATML), length=450, count=2, seed=0, split="calibration")
    record = train(base, tmp_path / "out", max_steps=30, eval_examples=examples, needles=needles)
    measured = [line for line in record["log"] if "eval_nll" in line]
    assert [line["step"] for line in measured] == [0, *range(3, 31, 3)]
    assert measured[-1]["eval_nll"] < 0.5 * measured[0]["eval_nll"]
    losses = [line["loss"] for line in record["log"] if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    loaded = swaa.load(tmp_path / "out")
    assert adaptation(loaded).config == CONFIG
    original = load_adapted(base)
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), logits(original))
    assert not torch.allclose(logits(loaded), logits(original), atol=1e-2)
    trained = {name.split(".")[-4] for name in loaded.state_dict() if "lora_A" in name}
    assert trained == {"q_proj", "k_proj", "v_proj"}
    # What was written down is what the saved adapter gives.
    answers = list(score_answers(loaded.eval(), tiny_tokenizer(CHATML), needles))
    assert measured[-1]["eval_needle_nll"] == pytest.approx(sum(x.nll for x in answers) / 2, rel=1e-4)
    assert measured[-1]["eval_needle_accuracy"] == sum(x.correct for x in answers) / 2


def test_the_nll_is_the_mean_over_all_answer_tokens(base, tmp_path):
    """However the held-out samples fall into batches."""
    examples = make_examples([*ROWS[:4], {"prompt": "why?", "answer": "because of this " * 4}], tiny_tokenizer(CHATML))[
        0
    ]
    found = []
    for batch_size in (1, 2, 5):
        record = train(base, tmp_path / str(batch_size), batch_size=batch_size, max_steps=1, eval_examples=examples)
        found.append(next(line["eval_nll"] for line in record["log"] if "eval_nll" in line))
    model = load_adapted(base).eval()
    total = count = 0
    for example in examples:
        ids = torch.tensor([example.ids])
        prompt = example.answer.index(True)
        with torch.no_grad():
            scores = model(ids, prompt_length=prompt, use_cache=False).logits[0, :-1].log_softmax(-1)
        gold = [(i - 1, token) for i, token in enumerate(example.ids) if example.answer[i]]
        total -= sum(float(scores[row, token]) for row, token in gold)
        count += len(gold)
    assert found == pytest.approx([total / count] * 3, rel=1e-5)


@pytest.mark.parametrize("lora", [Lora(dropout=0.2), None], ids=["lora", "full"])
def test_a_killed_run_goes_on_to_the_same_weights(base, tmp_path, lora):
    options = {"lora": lora, "max_steps": 7, "save_steps": 2, "accumulate": 2, "batch_size": 1, "pack": 80}
    options |= {"learning_rate": 1e-3, "eval_steps": 2}
    examples = make_examples(ROWS, tiny_tokenizer(CHATML))[0]
    whole = train(base, tmp_path / "whole", eval_examples=examples, **options)

    def kill(step, metrics):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path / "killed", eval_examples=examples, show=kill, **options)
    assert not list((tmp_path / "killed").glob("*.safetensors"))
    steps = []
    train(base, tmp_path / "killed", eval_examples=examples, show=lambda step, metrics: steps.append(step), **options)
    assert min(steps) == 5
    expected, found = (weights(swaa.load(tmp_path / name)) for name in ("whole", "killed"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    again = json.loads((tmp_path / "killed" / "train.json").read_text())
    assert [x.get("loss") for x in again["log"]] == [x.get("loss") for x in whole["log"]]


def test_a_folder_of_another_run_is_refused(base, tmp_path):
    train(base, tmp_path / "out", max_steps=1)
    with pytest.raises(ValueError, match="holds this run, finished"):
        train(base, tmp_path / "out", max_steps=1)
    with pytest.raises(ValueError, match="max_steps is 1 there and 2 here"):
        train(base, tmp_path / "out", max_steps=2)
    with pytest.raises(ValueError, match=r"config is .* there"):
        train(base, tmp_path / "out", max_steps=1, config=CONFIG.replace(window=7))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="not empty and holds no run"):
        train(base, tmp_path / "other")


def test_all_weights_can_be_trained(base, tmp_path):
    record = train(base, tmp_path / "out", lora=None, max_steps=10, learning_rate=3e-3)
    losses = [line["loss"] for line in record["log"] if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["use_cache"] is True
    assert swaa.SWAAConfig.from_dict(content["swaa"]) == CONFIG


def test_bfloat16_stays_near_float32(base, tmp_path):
    """Weights in float32 under autocast: queries, keys and values reach the attention in one type."""
    found = []
    for bf16 in (False, True):
        record = train(base, tmp_path / str(bf16), lora=None, max_steps=1, bf16=bf16, learning_rate=1e-4)
        found.append(record["log"][0]["loss"])
    assert found[0] != found[1]
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_merging(base, tmp_path):
    train(base, tmp_path / "adapter", max_steps=4, save_steps=2)
    adapter = swaa.load(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = swaa.load(tmp_path / "merged")
    assert adaptation(merged).config == CONFIG
    assert type(merged) is type(tiny_model())
    torch.testing.assert_close(logits(merged), logits(adapter), atol=1e-4, rtol=1e-4)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    # Checkpoints too.
    merge(tmp_path / "adapter" / "checkpoints" / "checkpoint-2", tmp_path / "half")
    half = logits(swaa.load(tmp_path / "half"))
    torch.testing.assert_close(
        half, logits(swaa.load(tmp_path / "adapter" / "checkpoints" / "checkpoint-2")), atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(half, logits(merged), atol=1e-3)


def test_merging_keeps_the_number_format(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16")
    model.save_pretrained(tmp_path / "bf16")
    tiny_tokenizer(CHATML).save_pretrained(tmp_path / "bf16")
    train(tmp_path / "bf16", tmp_path / "adapter", max_steps=2)
    merge(tmp_path / "adapter", tmp_path / "merged")
    assert swaa.load(tmp_path / "merged", dtype="auto").dtype == torch.bfloat16


def test_nonsense_is_not_merged(base, tmp_path):
    with pytest.raises(ValueError, match="is a whole model: there is nothing to merge"):
        merge(base, tmp_path / "out")
    with pytest.raises(ValueError, match="holds no adapter"):
        merge(tmp_path / "nowhere", tmp_path / "out")
    train(base, tmp_path / "adapter", max_steps=1)
    with pytest.raises(ValueError, match="is there already"):
        merge(tmp_path / "adapter", base)
    (tmp_path / "adapter" / "swaa_config.json").unlink()
    with pytest.raises(ValueError, match="stores no adaptation"):
        merge(tmp_path / "adapter", tmp_path / "out")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "IA3"}))
    with pytest.raises(ValueError, match="only LoRA"):
        merge(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_scale_is_8_unless_said():
    assert (Lora().scale, Lora(rslora=True).scale, Lora(rank=64).scale, Lora(alpha=3).scale) == (128, 32, 512, 3)
    model = add_lora(swaa.adapt(tiny_model(), CONFIG), Lora(rslora=True))
    assert model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 8
    with pytest.raises(ValueError, match=r"no layer 'q_prj'. Did you mean 'q_proj'\? .*o_proj"):
        add_lora(swaa.adapt(tiny_model(), CONFIG), Lora(targets=("q_prj",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: use 1 or more"),
        ({"learning_rate": 0}, "learning_rate=0: use a number above 0"),
        ({"warmup": 1.5}, "warmup=1.5 is no share"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**changes)


def test_a_model_without_an_adaptation_is_refused(base, tmp_path):
    examples = make_examples(ROWS, tiny_tokenizer(CHATML))[0]
    with pytest.raises(ValueError, match=r"call swaa.adapt first"):
        fine_tune(AutoModelForCausalLM.from_pretrained(base), tiny_tokenizer(CHATML), examples, tmp_path / "out")


# The command line


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_missing_package_is_one_line(base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    result = run("train", "-m", base, "-d", tmp_path / "rows.jsonl", "-o", tmp_path / "out", "--window", 6)
    assert result.exit_code == 2
    assert "error: fine-tuning needs peft: pip install 'swaa[train]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_commands(base, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, [*ROWS, {"prompt": "x" * 600, "answer": "long"}])))
    words = ["train", "-m", base, "-d", data, "-o", tmp_path / "adapter", "--window", 6, "--sinks", 2, "--fa-decode"]
    words += ["--lr", "1e-2", "--accumulate", 1, "--batch-size", 4, "--dtype", "float32", "--device", "cpu"]
    result = run(*words, "--eval-data", data, "--pack", 100, "--rank", 4, "--log-steps", 1)
    assert result.exit_code == 0, result.output
    assert "1 of 13 samples are longer than 512 tokens and are left out" in result.stderr
    assert "step 0: eval_nll" in result.stderr
    assert "steps on 12 samples" in result.stderr
    record = json.loads((tmp_path / "adapter" / "train.json").read_text())
    assert record["model"] == str(base)
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(base)
    assert record["settings"]["lora"]["rank"] == 4
    result = run("merge", tmp_path / "adapter", "-o", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    loaded = swaa.load(tmp_path / "merged")
    assert adaptation(loaded).config == swaa.SWAAConfig(window=6, sinks=2, fa_decode=True)
    result = run("generate", "Hi", "-m", tmp_path / "merged", "--max-new-tokens", 2, "--dtype", "float32")
    assert "window 6, 2 sinks, FA decode" in result.stderr


def test_adapters_on_the_command_line(base, tmp_path):
    train(base, tmp_path / "adapter", max_steps=2)
    words = ["-m", tmp_path / "adapter", "--max-new-tokens", 3, "--dtype", "float32", "--raw", "--device", "cpu"]
    result = run("generate", "Some words", *words)
    assert result.exit_code == 0, result.output
    assert "recipe stored (window 6, 2 sinks, layers 3 full, FA decode)" in result.stderr
    adapter = swaa.load(tmp_path / "adapter").eval()
    ids = tiny_tokenizer(CHATML)("Some words", return_tensors="pt").input_ids
    expected = adapter.generate(input_ids=ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    assert result.stdout.rstrip("\n") == tiny_tokenizer(CHATML).decode(expected, skip_special_tokens=True)
    # Below the limit the original model answers.
    result = run("generate", "Some words", *words, "--original-up-to", "1k")
    assert "10 prompt tokens" in result.stderr
    assert "the original model (up to 1024 tokens)" in result.stderr
    original = AutoModelForCausalLM.from_pretrained(base).generate(ids, max_new_tokens=3, do_sample=False)
    expected = tiny_tokenizer(CHATML).decode(original[0, ids.shape[1] :], skip_special_tokens=True)
    assert result.stdout.rstrip("\n") == expected
    result = run("generate", "Some words", *words, "--original-up-to", "window")
    assert "recipe stored" in result.stderr
    result = run("generate", "Hi", "-m", base, "--original-up-to", "window")
    assert "there is no adaptation to switch off" in result.stderr
    result = run("inspect", "-m", tmp_path / "adapter", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["recipe"]["config"] == CONFIG.to_dict()
    result = run("train", "-m", tmp_path / "adapter", "-d", "x.jsonl", "-o", tmp_path / "next", "--window", 6)
    assert "swaa merge" in result.stderr


def test_mistakes_on_the_command_line(base, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "1"}')
    result = run("train", "-m", base, "-d", data, "-o", tmp_path / "out", "--window", 6)
    assert result.exit_code == 2
    assert "row 1: needed are `prompt` and `answer`" in result.stderr
    assert not (tmp_path / "out").exists()
    result = run("train", "-m", "x.gguf", "-d", data, "-o", tmp_path / "out")
    assert "fine-tune the original model" in result.stderr
