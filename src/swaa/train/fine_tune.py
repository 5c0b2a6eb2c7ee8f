"""One fine-tuning from beginning to end, in a folder that can be continued."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swaa.adapters import PEFT_FILE
from swaa.attaching import adaptation, parts
from swaa.results import begin_folder, command_line, environment, model_revision, replace_json
from swaa.storage import save
from swaa.tasks import Sample
from swaa.train.data import Example, pack
from swaa.train.lora import add_lora
from swaa.train.loss import uninstall
from swaa.train.settings import TrainSettings
from swaa.train.trainer import COMPLETE, Show, SwaaTrainer

RECORD = "train.json"
CHECKPOINTS = "checkpoints"
# What changes how the run is watched and on what machine it runs, but not what is trained.
_FREE_TO_CHANGE = ("eval_steps", "save_steps", "log_steps", "report_to", "cpu")


def fine_tune(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    output: str | Path,
    settings: TrainSettings | None = None,
    *,
    eval_examples: Sequence[Example] = (),
    needles: Sequence[Sample] = (),
    base: str | None = None,
    show: Show | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Fine-tune an adapted model on examples, and save it: an adapter, or a whole model where all weights are trained.

    A folder that holds a part of the same run is continued from its last checkpoint, to the same result.

    Args:
        model: an adapted model; with LoRA its weights are frozen and it is wrapped in place.
        tokenizer: its tokenizer.
        examples: training data (`swaa.train.make_examples`).
        output: folder for the result, the checkpoints and `train.json`.
        settings: of the training; None: the defaults.
        eval_examples: held-out data, for the NLL during training.
        needles: retrieval samples, for the accuracy during training.
        base: name by which an adapter finds the model again; None: the name or folder it was loaded from.
        show: called with the step and the metrics, whenever there are some.
        note: called with a line that says where a run that was started before goes on.

    Returns:
        the content of `train.json`: what was trained, by which command and where, and `log`: the metrics of each step.

    Raises:
        ValueError: the model carries no adaptation, or `output` holds something else or a finished run.
        ModuleNotFoundError: the extra `train` is not installed, or what `settings.report_to` needs.
    """
    settings = settings or TrainSettings()
    settings.check_packages()
    state = adaptation(model)
    if state is None:
        raise ValueError("the model carries no adaptation to train under: call swaa.adapt first")
    output = Path(output).expanduser()
    decoder_config = parts(model)[0].config
    record: dict[str, Any] = {
        "command": command_line(),
        "model": base or decoder_config.name_or_path,
        "model_revision": model_revision(model),
        "config": state.config.to_dict(),
        "settings": asdict(settings),
        "data": _fingerprint(examples),
        "examples": len(examples),
        "environment": environment(),
    }
    # From here on this process knows the others, if a launcher started several.
    arguments = settings.arguments(output / CHECKPOINTS, evaluates=bool(eval_examples or needles))
    record["processes"] = arguments.world_size
    with arguments.main_process_first(local=False):
        if arguments.process_index == 0 and _open(output, record):
            last = _last_checkpoint(output / CHECKPOINTS)
            note(f"going on from {last}" if last else f"no checkpoint yet: starting over at step 0, in {output}")
    if settings.lora is not None:
        from transformers import set_seed

        set_seed(settings.seed)
        model = add_lora(model, settings.lora)
    rows = [[example] for example in examples] if settings.pack is None else pack(examples, settings.pack)
    uses_cache = getattr(decoder_config, "use_cache", True)
    if checkpoint := _last_checkpoint(output / CHECKPOINTS):
        arguments.eval_on_start = False
    watch: dict[str, Any] = {"eval_examples": eval_examples, "needles": needles, "show": show}
    trainer = SwaaTrainer(model, arguments, rows, tokenizer, objective=settings.objective, **watch)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
        log = trainer.state.log_history
        measured = [line["step"] for line in log if any(name.startswith("eval_") for name in line)]
        if (eval_examples or needles) and measured[-1:] != [trainer.state.global_step]:
            trainer.evaluate()
    finally:
        uninstall(model)
        # The Trainer switches the cache off, and would leave it off in what is saved.
        decoder_config.use_cache = uses_cache
    # What is spread over the processes has to be brought together by all of them.
    whole = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    trainer.accelerator.wait_for_everyone()
    record |= {"rows": len(rows), "steps": trainer.state.global_step, "log": trainer.state.log_history}
    if trainer.is_world_process_zero():
        save(model, output, state_dict=whole)
        tokenizer.save_pretrained(output)
        if settings.lora is not None:
            # Only now: PEFT looks the name up on the hub with every save, and may not find one of ours there.
            file = output / PEFT_FILE
            content = json.loads(file.read_text(encoding="utf-8"))
            replace_json(file, content | {"base_model_name_or_path": record["model"]})
        replace_json(output / RECORD, record)
    return record


def _open(output: Path, record: dict[str, Any]) -> bool:
    """Start the folder, or go on in it; tells whether the run was started before.

    Raises:
        ValueError: it holds a finished run, another one, or something else.
    """
    file = output / RECORD
    if not file.exists():
        begin_folder(output)
        replace_json(file, record)
        return False
    there = json.loads(file.read_text(encoding="utf-8"))
    old, new = _identity(there), _identity(json.loads(json.dumps(record)))
    if different := [name for name in new if old.get(name) != new[name]]:
        values = "; ".join(f"{name} is {old.get(name)} there and {new[name]} here" for name in different)
        raise ValueError(
            f"{output} holds another run: {values}. Choose another --output, or repeat its own command: "
            f"{there.get('command')}"
        )
    if "log" in there:
        raise ValueError(f"{output} holds this run, finished: choose another --output to train again")
    return True


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    own = {name: record[name] for name in ("model", "model_revision", "config", "data")}
    # As many rows more make a step.
    own["processes"] = record.get("processes", 1)
    return own | {name: x for name, x in record["settings"].items() if name not in _FREE_TO_CHANGE}


def _fingerprint(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.ids, example.answer, example.prose)).encode())
    return digest.hexdigest()


def _last_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that no kill has cut short."""
    complete = [file.parent for file in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[-1]))) if complete else None
