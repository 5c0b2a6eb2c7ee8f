"""The command `swaa` in processes that shard a model on the CPU, for `accelerate launch --use_fsdp`.

Accelerate shards on devices only, but what it calls works on the CPU as well: here it is told to.
"""

import os
import sys

from accelerate import state
from accelerate.utils import DistributedType

from swaa.cli import main

_init = state.AcceleratorState.__init__


def _sharding(self, *args, fsdp_plugin=None, **kwargs):
    new = not state.AcceleratorState._shared_state
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if new and fsdp_plugin is not None:
        if self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    state.AcceleratorState.__init__ = _sharding
    try:
        main()
    except SystemExit as done:
        sys.stdout.flush()
        sys.stderr.flush()
        # When all was done, torch has once aborted while it was taken down ("terminate called without an active
        # exception"): sharding on a CPU is this program's doing, and nobody else's way out.
        os._exit(done.code or 0)
