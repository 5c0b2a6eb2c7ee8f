"""Fine-tuning under the mask of an adaptation: data, chat marks, batches, the Trainer, LoRA and merging."""

from swaa.train.collator import Collator
from swaa.train.data import Example, make_examples, pack, read_data
from swaa.train.fine_tune import fine_tune
from swaa.train.lora import Lora, add_lora, merge
from swaa.train.loss import Objective
from swaa.train.settings import TrainSettings
from swaa.train.trainer import SwaaTrainer

__all__ = [
    "Collator",
    "Example",
    "Lora",
    "Objective",
    "SwaaTrainer",
    "TrainSettings",
    "add_lora",
    "fine_tune",
    "make_examples",
    "merge",
    "pack",
    "read_data",
]
