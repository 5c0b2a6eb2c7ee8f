"""Several processes, one a GPU, that share the work of a run: started by `accelerate launch`."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

# Processes wait for each other only at the start and at the end, when one may have hours more to do.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Workers:
    """The processes of a run, as one of them sees it.

    Args:
        rank: number of this process.
        count: how many there are.
        device: of this process, `"auto"` if it is the only one.
        loading: where a model is loaded: on the device, but if weights are to be sharded, which then moves them there.
        wait: returns when all processes have called it.
    """

    rank: int = 0
    count: int = 1
    device: str = "auto"
    loading: str = "auto"
    wait: Callable[[], None] = lambda: None


@contextmanager
def joined(device: str = "auto") -> Iterator[Workers]:
    """Join the other processes while the context lasts, if a launcher started several.

    Args:
        device: where this process computes; `"auto"`: on a GPU of its own if there is one.

    Raises:
        ModuleNotFoundError: accelerate is missing.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Workers(device=device, loading=device)
        return
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
    try:
        place = str(state.device)
        loading = "cpu" if os.environ.get("ACCELERATE_USE_FSDP") == "true" else place
        yield Workers(state.process_index, state.num_processes, place, loading, state.wait_for_everyone)
    finally:
        state.destroy_process_group()
