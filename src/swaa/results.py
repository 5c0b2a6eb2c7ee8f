"""Writing results: never over older ones, and with all that is needed to make them again."""

import contextlib
import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import swaa

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Ends the names of files that are being written.
_UNFINISHED = ".new"
# Values of each weight that its fingerprint looks at.
_LOOKED_AT = 1024


def new_folder(base: str | Path, name: str) -> Path:
    """Make a fresh folder `base/name-<date>-<time>`; a number is appended rather than writing into an existing one.

    Raises:
        ValueError: no folder can be made there.
    """
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 1000):
        folder = Path(base) / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(f"no folder can be made in {base} ({error.strerror}): choose another --output") from error
        return folder
    raise FileExistsError(f"{base} holds a thousand folders named {stem}: clean up, or choose another --output")


@contextlib.contextmanager
def fresh_folder(base: str | Path, name: str) -> Iterator[Path]:
    """Make a fresh folder (`new_folder`); an error that leaves it empty takes it away, and what was made around it.

    Raises:
        ValueError: no folder can be made there.
    """
    around = [folder for folder in (Path(base), *Path(base).parents) if not folder.exists()]
    made = [new_folder(base, name), *around]
    try:
        yield made[0]
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def begin_folder(folder: Path, what: str = "run") -> None:
    """Make the folder of something that is continued when its command is repeated.

    Args:
        folder: that does not exist, is empty, or holds the first file that a kill cut short.
        what: that will lie there, for the error.

    Raises:
        ValueError: something else is there.
    """
    if folder.exists() and not (folder.is_dir() and all(file.name.endswith(_UNFINISHED) for file in folder.iterdir())):
        raise ValueError(f"{folder} is not empty and holds no {what}: choose another --output")
    folder.mkdir(parents=True, exist_ok=True)


def environment() -> dict[str, str]:
    """Return versions and hardware: what a number depends on beside its command."""
    import torch

    found = {
        "swaa": swaa.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    for package in ("torch", "transformers"):
        found[package] = importlib.metadata.version(package)
    found["cpu"] = _cpu_name()
    found["threads"] = str(torch.get_num_threads())
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
        for package in ("triton", "flash-attn-4"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[package] = importlib.metadata.version(package)
    return found


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as CSV, floats with six significant digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{x:.6g}" if isinstance(x, float) else x for key, x in row.items()})


def write_json(path: Path, content: Any) -> None:
    """Write JSON that a person can read."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def replace_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader, or a run that was killed, finds the old content or the new, never a part."""
    beside = path.with_name(path.name + _UNFINISHED)
    write_json(beside, content)
    os.replace(beside, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file, none if there is no such file; a last line that was torn by a kill is cut off the file.

    Raises:
        ValueError: another line than the last is broken: then something else than a kill has changed the file.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    lines = content.split(b"\n")
    found, whole = [], 0
    for number, line in enumerate(lines[:-1], start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number < len(lines) - 1:
                raise ValueError(f"{path}, line {number}, is no JSON: restore the file, or delete that line") from error
            break
        whole += len(line) + 1
    if whole < len(content):
        os.truncate(path, whole)
    return found


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a JSONL file, and return when they are on the disk."""
    with path.open("ab") as file:
        file.write(b"".join(map(_line, rows)))
        file.flush()
        os.fsync(file.fileno())


def replace_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file anew; whoever reads finds the old rows or the new."""
    beside = path.with_name(path.name + _UNFINISHED)
    beside.unlink(missing_ok=True)
    append_lines(beside, rows)
    os.replace(beside, path)


def git_revision() -> str | None:
    """Return the commit of the checkout that runs, `-dirty` added if tracked files differ; None outside of one."""
    folder = Path(swaa.__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside somebody else's repository, which does not track it.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return f"{git('rev-parse', 'HEAD')}{'-dirty' if git('status', '--porcelain', '-uno') else ''}"


def model_revision(model: "PreTrainedModel") -> str:
    """Return what tells a model's weights from others: the hub's commit, otherwise a hash over a part of each weight.

    The hash is over name, shape and up to 1024 evenly spread values of every parameter, whatever the file.
    """
    if commit := getattr(model.config, "_commit_hash", None):
        return str(commit)
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().reshape(-1)
        values = values[:: max(len(values) // _LOOKED_AT, 1)].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} ".encode() + values.numpy().tobytes())
    return f"weights-{digest.hexdigest()[:16]}"


def command_line() -> str:
    """Return the command that runs, as one would type it."""
    name = Path(sys.argv[0]).name
    # `python -m swaa.cli`, which launchers of several processes start, is the command by another name.
    return shlex.join(["swaa" if name == "__main__.py" else name, *sys.argv[1:]])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
