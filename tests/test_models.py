"""Loading models: folders, hub ids, GGUF files, and each way it can go wrong."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config

from model_files import save_tokenizer, tiny_model, write_gguf
from swaa.errors import ModelError
from swaa.models import DEFAULT_MODEL, load_model


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny"
    tiny_model().save_pretrained(path)
    save_tokenizer(path)
    return path


def test_import_is_light():
    code = "import sys, swaa.models; print({'torch', 'transformers', 'gguf'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


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
