"""The command line: what it prints where, exit codes, and that its text is the model's own."""

import io
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import typer
import yaml
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, T5Config
from typer.testing import CliRunner

import swaa
import swaa.cli.recipes
from families import FAMILIES, TINY, tiny_model
from swaa.cli import app, loading
from swaa.cli.common import resolve_recipe, token_count
from swaa.cli.prompting import REASON_FIRST, read_prompt
from swaa.cli.wording import billions, layer_ranges, quantity, short_form
from swaa.config import ConfigError, SWAAConfig
from swaa.cost import kv_bytes, prefill_flops
from swaa.recipes import load_recipe, recipe_names
from test_models import write_gguf

SPECIAL = ["<pad>", "<bos>", "<eos>"]
VOCABULARY = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{% if enable_thinking %}<think>{% endif %}"
)
PROMPT = "The quick brown fox jumps over the lazy dog, again and again."
ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with a tokenizer that has a chat template."""
    path = tmp_path_factory.mktemp("model")
    tiny_model(vocab_size=len(VOCABULARY)).save_pretrained(path)
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
    return path


def run(*args, stdin=None, **environment):
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, env=environment)


def succeed(*args, **kwargs):
    result = run(*args, **kwargs)
    assert result.exit_code == 0, result.output
    return result


def fail(*args, **kwargs):
    """Run a command that a user got wrong, and return its error: one line on stderr, nothing on stdout."""
    result = run(*args, **kwargs)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


# The app as a whole


def commands():
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        found[name] = command
        found |= {f"{name} {sub}": each for sub, each in getattr(command, "commands", {}).items()}
    return found


@pytest.mark.parametrize("name", commands())
def test_help_teaches(name):
    command = commands()[name]
    assert "Examples" in command.help
    assert command.help.count("`swaa ") + command.help.count("| swaa ") >= 2
    for parameter in command.params:
        assert parameter.name == "help" or len(parameter.help or "") > 10, parameter.name
    assert succeed(*name.split(), "--help").stdout


def test_import_is_light():
    code = "import sys, swaa.cli; print(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_version():
    assert succeed("--version").stdout == f"swaa {swaa.__version__}\n"


def test_unknown_command():
    result = run("inspekt", TERM="dumb")
    assert result.exit_code == 2
    assert "Did you mean 'inspect'?" in result.stderr


def test_debug_shows_the_traceback():
    for debugging in (run("--debug", "recipes", "show", "foo"), run("recipes", "show", "foo", SWAA_DEBUG="1")):
        assert debugging.exit_code == 2
        assert "Traceback" in debugging.stderr
        assert "ConfigError" in debugging.stderr
        assert debugging.stderr.splitlines()[-1].startswith("error: unknown recipe 'foo'")


def test_interrupt(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(swaa.cli.recipes, "recipe_names", interrupt)
    result = run("recipes")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    def mistake():
        raise TypeError("ours")

    monkeypatch.setattr(swaa.cli.recipes, "recipe_names", mistake)
    assert isinstance(run("recipes").exception, TypeError)


# Recipes


def test_recipes():
    lines = succeed("recipes").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == recipe_names()
    line = next(line for line in lines if line.startswith("paper-thinking-speed "))
    assert "window 4096, 128 sinks, FA decode, thinking on" in line
    assert load_recipe("paper-thinking-speed").description in line


def test_recipes_show(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(succeed("recipes", "show", "paper-thinking-speed").stdout)
    assert load_recipe(file).to_dict() == load_recipe("paper-thinking-speed").to_dict()


def test_recipes_show_of_a_reference_file(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps([{"sliding_window_size": 2048, "keep_first": 10}, {"sliding_window_size": None}]))
    shown = [SWAAConfig.from_dict(x["config"]) for x in yaml.safe_load_all(succeed("recipes", "show", file).stdout)]
    assert shown == [SWAAConfig(window=2048, sinks=10), SWAAConfig()]


def test_recipes_show_suggests():
    assert "Did you mean 'sinks-fa-decode'?" in fail("recipes", "show", "sink-fa-decode")


STORED = {"window": 64, "sinks": 4}


@pytest.mark.parametrize(
    ("recipe", "stored", "flags", "name", "config"),
    [
        (None, None, {}, "full", SWAAConfig()),
        (None, None, {"window": 8, "sinks": 2}, "flags", SWAAConfig(window=8, sinks=2)),
        (None, STORED, {}, "stored", SWAAConfig(window=64, sinks=4)),
        (None, STORED, {"sinks": 0}, "stored + flags", SWAAConfig(window=64)),
        ("naive", STORED, {}, "naive", SWAAConfig(window=2048)),
        ("fa-decode", None, {"fa_decode": False}, "fa-decode + flags", SWAAConfig(window=2048)),
        ("fa-decode", None, {"fa_decode_layers": "3, 1"}, "fa-decode + flags", SWAAConfig(2048, fa_decode=[1, 3])),
        ("naive", None, {"full_layers": "1/4@3"}, "naive + flags", SWAAConfig(2048, full_layers="1/4@3")),
        ("naive", None, {"full_layers": "7,1"}, "naive + flags", SWAAConfig(2048, full_layers=[1, 7])),
        ("naive", None, {"full_layers": "5"}, "naive + flags", SWAAConfig(2048, full_layers=[5])),
        ("naive", None, {"dense_tail": 9}, "naive + flags", SWAAConfig(2048, dense_tail=9)),
        (None, None, {"backend": "eager"}, "flags", SWAAConfig(backend="eager")),
    ],
)
def test_precedence(recipe, stored, flags, name, config):
    resolved = resolve_recipe(recipe, model_config=SimpleNamespace(swaa=stored), **flags)
    assert (resolved.name, resolved.config) == (name, config)
    assert bool(resolved.description) == (not flags)


def test_recipe_settings_survive_flags():
    assert resolve_recipe("paper-thinking-speed", sinks=1).chain_of_thought == "thinking"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sinks": 2}, "set window"),
        ({"window": 8, "full_layers": "od"}, "Did you mean 'odd'?"),
        ({"window": 8, "full_layers": "1,x"}, "'x' in '1,x' is no layer number"),
        ({"window": 8, "fa_decode": True, "fa_decode_layers": "1"}, "not both"),
        ({"window": 8, "fa_decode_layers": "odd"}, "'odd' is no list of layer numbers"),
    ],
)
def test_wrong_flags(flags, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve_recipe(None, **flags)


@pytest.mark.parametrize(("text", "count"), [("512", 512), ("4k", 4096), (" 2K", 2048), (7, 7), ("0", 0)])
def test_token_count(text, count):
    assert token_count(text) == count


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5k", "4kb", "four"])
def test_no_token_count(text):
    with pytest.raises(ValueError, match="no number of tokens"):
        token_count(text)


# Wording


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (SWAAConfig(), "full attention"),
        (SWAAConfig(window=8, sinks=1, backend="eager"), "window 8, 1 sink, backend eager"),
        (SWAAConfig(8, full_layers="odd", fa_decode=True), "window 8, odd layers full, FA decode"),
        (SWAAConfig(8, full_layers="none", dense_tail=3), "window 8, dense tail 3"),
        (SWAAConfig(8, full_heads={3: [0, 2]}), "window 8, KV heads 3:0,2 full"),
        (SWAAConfig(8, full_heads={layer: [0] for layer in range(9)}), "window 8, 9 KV heads full"),
        (SWAAConfig(8, 2, [0, 3], [1]), "window 8, 2 sinks, layers 0,3 full, FA decode on layers 1"),
    ],
)
def test_short_form(config, text):
    assert short_form(config) == text


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (range(7), "0-6"),
        ([4], "4"),
        ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8"),
        ([1, 3, 5], "1, 3, 5"),
        (range(1, 30, 2), "1, 3, ..., 29"),
    ],
)
def test_layer_ranges(layers, text):
    assert layer_ranges(list(layers)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0, "0 B"), (999, "999 B"), (999.7, "1 kB"), (188743680, "189 MB"), (4.52e12, "4.52 TB")],
)
def test_quantity(value, text):
    assert quantity(value, "B") == text


@pytest.mark.parametrize(("count", "text"), [(4_022_468_096, "4.02B"), (134_515_008, "135M"), (37_472, "37.5k")])
def test_billions(count, text):
    assert billions(count) == text


# Inspect


def inspect(*args):
    return json.loads(succeed("inspect", "--json", *args).stdout)


def test_inspect_json(folder):
    report = inspect("-m", folder, "--window", 8, "--sinks", 2, "--full-layers", "1", "--fa-decode-layers", "2,3")
    config = SWAAConfig(window=8, sinks=2, full_layers=[1], fa_decode=[2, 3])
    model = AutoConfig.from_pretrained(folder)
    rules, full = config.resolve(4), SWAAConfig().resolve(4)
    assert report["recipe"] == {"name": "flags", "summary": short_form(config), "config": config.to_dict()}
    assert [row["attention"] for row in report["layers"]] == ["sliding", "full", "sliding", "sliding"]
    assert [row["fa_decode"] for row in report["layers"]] == [False, False, True, True]
    assert [row["kv"] for row in report["layers"]] == ["released", "kept", "kept", "kept"]
    assert report["length"] == report["positions"] == 512
    assert report["parameters"] == sum(parameter.numel() for parameter in load(folder).parameters())
    assert report["kv_bytes"]["recipe"] == kv_bytes(model, rules, 512, release_kv=True)
    assert report["kv_bytes_held"] == report["kv_bytes"]
    linear, attention = prefill_flops(model, rules, 512, report["parameters"])
    full_attention = prefill_flops(model, full, 512, report["parameters"])[1]
    assert report["prefill_flops"]["attention"] == {
        "recipe": attention,
        "full": full_attention,
        "ratio": attention / full_attention,
    }
    assert report["prefill_flops"]["total"]["ratio"] == (linear + attention) / (linear + full_attention) < 1
    assert report["backend"]["name"] == "sdpa"


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def test_inspect_needs_no_weights_and_follows_the_stored_adaptation(tmp_path):
    model = swaa.adapt(tiny_model(), SWAAConfig(window=8, sinks=2))
    model.config.save_pretrained(tmp_path)
    report = inspect("-m", tmp_path)
    assert (report["recipe"]["name"], report["recipe"]["summary"]) == ("stored", "window 8, 2 sinks")
    assert inspect("-m", tmp_path, "--sinks", 0)["recipe"]["summary"] == "window 8"
    assert inspect("-m", tmp_path, "-r", "full")["kv_bytes"]["ratio"] == 1


def test_inspect_recipe_file(folder, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("config: {window: 16, sinks: 3}")
    report = inspect("-m", folder, "-r", file, "--window", "1k", "--length", "4k")
    assert (report["recipe"]["name"], report["recipe"]["summary"]) == ("mine + flags", "window 1024, 3 sinks")
    assert report["length"] == 4096


def table(*args):
    """The rows of the layer map, cells split."""
    lines = succeed("inspect", *args).stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("layers "))
    return [re.split(r"\s{2,}", line.strip()) for line in lines[start + 1 : lines.index("", start)]]


def test_inspect_table(folder):
    flags = ("-m", folder, "--window", 8, "--sinks", 2, "--full-layers", "2", "--fa-decode", "--dense-tail", 3)
    sliding, full = ["sliding", "8", "2", "yes", "3", "kept"], ["full", "-", "-", "-", "-", "kept"]
    assert table(*flags) == [["0-1, 3", *sliding], ["2", *full]]
    assert table(*flags, "--all") == [["0", *sliding], ["1", *sliding], ["2", *full], ["3", *sliding]]


def test_inspect_full_heads(tmp_path):
    AutoConfig.for_model("llama", **(TINY | {"num_attention_heads": 8, "num_key_value_heads": 4})).save_pretrained(
        tmp_path
    )
    flags = (
        "-m",
        tmp_path,
        "--window",
        8,
        "--full-layers",
        "2",
        "--full-heads",
        "0:1,3,3:0",
        "--fa-decode-layers",
        "3",
    )
    report = inspect(*flags)
    assert report["recipe"]["summary"] == "window 8, layers 2 full, KV heads 0:1,3,3:0 full, FA decode on layers 3"
    assert [row["full_heads"] for row in report["layers"]] == [[1, 3], [], [], [0]]
    assert [row["kv"] for row in report["layers"]] == ["released but for full heads", "released", "kept", "kept"]
    # Keys and values, head dim 8, 16 bits: two heads of layer 0 and all of layer 1 hold 7 tokens.
    assert report["kv_bytes"]["recipe"] == 2 * 8 * 2 * (6 * 7 + 10 * 512)
    assert report["kv_bytes_held"] == report["kv_bytes"]
    assert "2 of 4 layers forget what no later row can see (1 of them in their sliding heads only)" in report["verdict"]
    assert table(*flags) == [
        ["0", "sliding, KV heads 1, 3 full", "8", "-", "-", "-", "released but for full heads"],
        ["1", "sliding", "8", "-", "-", "-", "released"],
        ["2", "full", "-", "-", "-", "-", "kept"],
        ["3", "sliding, KV heads 0 full", "8", "-", "yes", "-", "kept"],
    ]
    assert "KV heads 0 to 3, not [4]" in fail("inspect", "-m", tmp_path, "--window", 8, "--full-heads", "1:4")


def test_full_heads_of_a_recipe(folder, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("config: {window: 16, full_heads: {3: [1], 0: [0]}}")
    assert inspect("-m", folder, "-r", file)["recipe"]["summary"] == "window 16, KV heads 0:0,3:1 full"
    assert inspect("-m", folder, "-r", file, "--full-heads", "none")["recipe"]["summary"] == "window 16"
    assert load_recipe(file).config == SWAAConfig.from_dict(json.loads(json.dumps(load_recipe(file).config.to_dict())))


@pytest.mark.parametrize("text", ["1", "1:", "x:1", "1:0,y", "1:0,:2", "0,1:1", ""])
def test_unreadable_full_heads(folder, text):
    assert "write heads 0 and 2 of layer 3" in fail("inspect", "-m", folder, "--window", 8, "--full-heads", text)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((), "nothing is saved"),
        (("--window", 8, "--full-layers", "all"), "nothing is saved"),
        (("--window", 512), "Nothing is saved at 512 tokens"),
        (("--window", 8, "--fa-decode"), "prefill time, not memory: with FA decode"),
        (("--window", 8, "--fa-decode-layers", "1"), "prefill time and memory: 3 of 4 layers forget"),
    ],
)
def test_verdict(folder, flags, text):
    assert text in inspect("-m", folder, *flags)["verdict"]


def test_kept_kv(folder, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("{window: 8, fa_decode: [1], release_kv: false}")
    report = inspect("-m", folder, "-r", file)
    assert {row["kv"] for row in report["layers"]} == {"kept"}
    assert report["kv_bytes"]["ratio"] == report["kv_bytes_held"]["ratio"] == 1
    assert "prefill time, not memory: layers without FA decode (3)" in report["verdict"]


def test_inspect_native_windows_and_experts(tmp_path):
    AutoConfig.for_model("gpt_oss", **(TINY | FAMILIES["gpt_oss"])).save_pretrained(tmp_path)
    rows = table("-m", tmp_path, "--window", 8)
    assert rows == [
        ["0, 2", "native (sliding_attention)", "16", "-", "-", "-", "released"],
        ["1, 3", "sliding", "8", "-", "-", "-", "released"],
    ]
    report = inspect("-m", tmp_path)
    assert report["active_parameters"] < report["parameters"]
    assert "active)" in succeed("inspect", "-m", tmp_path).stdout


def test_inspect_tells_what_it_cannot_know(tmp_path):
    AutoConfig.for_model("deepseek_v3", num_hidden_layers=2, **MLA).save_pretrained(tmp_path)
    report = inspect("-m", tmp_path, "--window", 8)
    assert report["kv_bytes"] == report["prefill_flops"]["total"] == {"recipe": None, "full": None, "ratio": None}
    assert "is not known" in report["verdict"]
    assert succeed("inspect", "-m", tmp_path).stdout.count("unknown") == 12


def test_inspect_linear_attention(tmp_path):
    kinds = ["linear_attention", "full_attention"] * 2
    AutoConfig.for_model("qwen3_next", **(TINY | {"layer_types": kinds, "num_experts": 4})).save_pretrained(tmp_path)
    report = inspect("-m", tmp_path, "--window", 8)
    assert [row["attention"] for row in report["layers"]] == ["native (linear_attention)", "sliding"] * 2
    assert report["kv_bytes"]["ratio"] is None
    assert "what this family keeps in memory is not known" in report["verdict"]


def test_inspect_composite_model(tmp_path):
    text = AutoConfig.for_model("gemma3_text", **(TINY | FAMILIES["gemma3_text"]))
    AutoConfig.for_model("gemma3", text_config=text.to_dict()).save_pretrained(tmp_path)
    text.save_pretrained(tmp_path / "text")
    composite, plain = inspect("-m", tmp_path, "--window", 8), inspect("-m", tmp_path / "text", "--window", 8)
    assert composite | {"model": ""} == plain | {"model": ""}


def test_inspect_gguf(tmp_path):
    write_gguf(tmp_path / "model.gguf")
    report = inspect("-m", tmp_path / "model.gguf", "--window", 8)
    assert (report["family"], report["positions"], len(report["layers"])) == ("llama", 512, 2)


@pytest.mark.parametrize("reachable", [True, False])
def test_configuration_from_the_hub(monkeypatch, reachable):
    def ask(url, timeout):
        assert url.endswith("owner/name/resolve/main/config.json")
        if not reachable:
            raise OSError

    def from_pretrained(name, local_files_only, trust_remote_code):
        assert (local_files_only, trust_remote_code) == (not reachable, False)
        return AutoConfig.for_model("llama", **TINY)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
    assert inspect("-m", "owner/name")["model"] == "owner/name"


MLA = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 8, "n_group": 1}
MLA |= {"vocab_size": 101, "num_attention_heads": 4, "num_key_value_heads": 4, "topk_group": 1}


def test_inspect_errors(folder, tmp_path):
    assert "the model has layers 0 to 3, not [7]" in fail("inspect", "-m", folder, "--window", 8, "--full-layers", "7")
    assert "no such path" in fail("inspect", "-m", "no-such-model")
    assert "neither an existing path nor a hub id" in fail("inspect", "-m", "no such model")
    assert "Did you mean 'sdpa'?" in fail("inspect", "-m", folder, "--window", 8, "--backend", "sdp")
    T5Config().save_pretrained(tmp_path)
    assert "encoder-decoder" in fail("inspect", "-m", tmp_path)
    AutoConfig.for_model("mistral", **(TINY | {"sliding_window": 16})).save_pretrained(tmp_path)
    assert "nothing to adapt" in fail("inspect", "-m", tmp_path)
    AutoConfig.for_model("bloom", n_layer=2, n_head=2, hidden_size=16).save_pretrained(tmp_path)
    assert "attention interface" in fail("inspect", "-m", tmp_path, "--window", 8)
    assert "give --length" in fail("inspect", "-m", tmp_path)


@pytest.mark.parametrize("flag", ["--length", "--window", "--sinks", "--dense-tail"])
def test_no_number_of_tokens(flag):
    result = run("inspect", flag, "4kb", TERM="dumb", COLUMNS="200")
    assert result.exit_code == 2
    assert flag in result.stderr
    assert "4kb" in result.stderr


# Generate


def generate(folder, *args, new=12, **kwargs):
    return succeed("generate", "-m", folder, "--max-new-tokens", new, "--dtype", "float32", *args, **kwargs)


def expected(folder, text, config=None, new=12, **kwargs):
    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    if config is not None:
        swaa.adapt(model, config)
    inputs = tokenizer(text, return_tensors="pt")
    torch.manual_seed(kwargs.pop("seed", 0))
    tokens = model.generate(**inputs, max_new_tokens=new, **({"do_sample": False} | kwargs))
    return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) + "\n"


ADAPTATION = SWAAConfig(window=5, sinks=2, full_layers=[2], fa_decode=True, dense_tail=3)
FLAGS = ("--window", 5, "--sinks", 2, "--full-layers", "2", "--fa-decode", "--dense-tail", 3)


@pytest.mark.parametrize("new", [1, 40])
def test_generate_is_the_models_own(folder, new):
    full = generate(folder, "--raw", PROMPT, new=new)
    adapted = generate(folder, "--raw", PROMPT, *FLAGS, new=new)
    assert full.stdout == expected(folder, PROMPT, new=new)
    assert adapted.stdout == expected(folder, PROMPT, ADAPTATION, new=new)
    assert f"{len(PROMPT)} prompt tokens, {new} new, first token after" in adapted.stderr
    assert "recipe flags (window 5, 2 sinks, layers 2 full, FA decode, dense tail 3)" in adapted.stderr
    assert ("tokens/s" in adapted.stderr) == (new > 1)
    assert "recipe full (full attention)" in full.stderr
    if new > 1:
        assert full.stdout != adapted.stdout


def test_generate_in_chunks(folder):
    chunked = generate(folder, "--raw", PROMPT, *FLAGS, "--prefill-chunk-size", 7)
    assert chunked.stdout == expected(folder, PROMPT, ADAPTATION)


def test_generate_samples(folder):
    args = ("--raw", PROMPT, "--temperature", 0.9, "--top-p", 0.8, "--seed", 4)
    sampling = {"do_sample": True, "temperature": 0.9, "top_p": 0.8, "top_k": 0}
    assert generate(folder, *args).stdout == expected(folder, PROMPT, seed=4, **sampling)
    assert generate(folder, *args).stdout != expected(folder, PROMPT, seed=5, **sampling)


def test_generate_with_the_stored_adaptation(folder, tmp_path):
    model = swaa.adapt(load(folder), ADAPTATION)
    swaa.save(model, tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert generate(tmp_path, "--raw", PROMPT).stdout == expected(folder, PROMPT, ADAPTATION)
    assert generate(tmp_path, "--raw", PROMPT, "-r", "full").stdout == expected(folder, PROMPT)


def test_generate_in_the_chat_template(folder, tmp_path):
    assert generate(folder, "Hi").stdout == expected(folder, "<user>Hi\n<assistant>")
    briefly = generate(folder, "Hi", "--system", "Be brief.").stdout
    assert briefly == expected(folder, "<system>Be brief.\n<user>Hi\n<assistant>")
    for thought, text in (
        ("prompt", f"<user>Hi{REASON_FIRST}\n<assistant>"),
        ("thinking", "<user>Hi\n<assistant><think>"),
    ):
        file = tmp_path / f"{thought}.yaml"
        file.write_text(f"config: {{window: null}}\ngeneration: {{chain_of_thought: {thought}}}")
        result = generate(folder, "Hi", "-r", file)
        assert result.stdout == expected(folder, text)
        assert "warning" not in result.stderr
    assert "no thinking to switch on" in generate(folder, "Hi", "-r", file, "--raw").stderr


def test_template_without_a_thinking_switch(folder, tmp_path):
    load(folder).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE.replace("{% if enable_thinking %}<think>{% endif %}", "")
    tokenizer.save_pretrained(tmp_path)
    assert "no thinking switch" in generate(tmp_path, "Hi", "-r", "paper-thinking-speed").stderr


def test_where_the_prompt_comes_from(folder, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(PROMPT)
    alone, asked = expected(folder, PROMPT), expected(folder, f"{PROMPT}\n\nWhy?")
    assert generate(folder, "--raw", stdin=PROMPT).stdout == alone
    assert generate(folder, "--raw", "-", stdin=PROMPT).stdout == alone
    assert generate(folder, "--raw", "--file", file).stdout == alone
    assert generate(folder, "--raw", "--file", "-", stdin=PROMPT).stdout == alone
    assert generate(folder, "--raw", "--file", file, "Why?").stdout == asked
    assert generate(folder, "--raw", "--file", "-", "Why?", stdin=PROMPT).stdout == asked


def test_prompt_longer_than_the_model(folder):
    long = "word " * 110
    assert "550 prompt tokens and up to 2 new ones" in (stderr := generate(folder, "--raw", long, new=2).stderr)
    assert "knows 512 positions" in stderr
    assert "warning" not in generate(folder, "--raw", "word " * 100, new=12).stderr


def test_generate_errors(folder, tmp_path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    model = ("generate", "-m", folder)
    for args in (("",), ("--file", os.devnull), (" \n",)):
        assert "the prompt is empty" in fail(*model, *args)
    assert "the prompt is empty" in fail(*model, stdin="")
    assert "no UTF-8 text" in fail(*model, "--file", binary)
    assert "No such file" in fail(*model, "--file", tmp_path / "absent")
    assert "needs a chat template" in fail(*model, "Hi", "--raw", "--system", "Be brief.")
    assert "unknown device" in fail(*model, "Hi", "--device", "abacus")
    assert "layers 0 to 3, not [9]" in fail(*model, "Hi", "--window", 8, "--fa-decode-layers", "9")


def test_no_prompt_at_a_terminal(folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("swaa.cli.prompting.sys.stdin", Terminal("never read"))
    with pytest.raises(ValueError, match="no prompt: give it as an argument"):
        read_prompt(None, None)


@pytest.mark.parametrize("flag", ["--max-new-tokens", "--prefill-chunk-size", "--length"])
def test_at_least_one_token(flag):
    result = run("inspect" if flag == "--length" else "generate", flag, "0", TERM="dumb", COLUMNS="200")
    assert result.exit_code == 2
    assert "1 token or more" in result.stderr


# In a process of its own, piped


def piped(*args, **kwargs):
    code = [sys.executable, "-c", "from swaa.cli import main; main()", *(str(arg) for arg in args)]
    environment = os.environ | {"TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(code, stderr=subprocess.PIPE, text=True, env=environment, **kwargs)


def test_piped(folder):
    args = ("generate", "-m", folder, "--raw", "--max-new-tokens", 12, "--dtype", "float32")
    result = piped(*args, input=PROMPT, stdout=subprocess.PIPE)
    assert result.returncode == 0
    assert result.stdout == expected(folder, PROMPT)
    assert re.fullmatch(
        r"\d+ prompt tokens, 12 new, first token after .* s, .* tokens/s, recipe full .*\n", result.stderr
    )


def test_piped_error():
    result = piped("recipes", "show", "foo", stdout=subprocess.PIPE)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: unknown recipe 'foo'.")
    assert ESCAPE not in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("recipes",), ("recipes", "show", "naive")])
def test_broken_pipe_is_quiet(command):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = piped(*command, stdout=writer)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize(("device", "threads"), [("cuda:0", 2), ("cpu", 6)])
def test_few_threads_beside_a_gpu(monkeypatch, device, threads):
    before = torch.get_num_threads()
    loaded = SimpleNamespace(device=torch.device(device))
    monkeypatch.setattr("swaa.models.load_model", lambda name, **_: (loaded, name))
    torch.set_num_threads(6)
    try:
        assert loading.load("mine", dtype="auto", device="auto") == (loaded, "mine")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
