"""`swaa inspect`: its report against the cost model, the table of layers, the verdict, and what it cannot know."""

import json
import re

import pytest
from transformers import AutoConfig, T5Config

import swaa
from cli_runs import fail, load, run, save_model, succeed
from families import FAMILIES, TINY, tiny_model
from model_files import write_gguf
from swaa.cli.wording import short_form
from swaa.config import SWAAConfig
from swaa.cost import active_weights, kv_bytes, prefill_flops
from swaa.recipes import load_recipe

MLA = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 8, "n_group": 1}
MLA |= {"vocab_size": 101, "num_attention_heads": 4, "num_key_value_heads": 4, "topk_group": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


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
    weights = active_weights(load(folder))
    linear, attention = prefill_flops(model, rules, 512, weights)
    full_attention = prefill_flops(model, full, 512, weights)[1]
    assert report["prefill_flops"]["attention"] == {
        "recipe": attention,
        "full": full_attention,
        "ratio": attention / full_attention,
    }
    assert report["prefill_flops"]["total"]["ratio"] == (linear + attention) / (linear + full_attention) < 1
    assert report["backend"]["name"] == "sdpa"


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
