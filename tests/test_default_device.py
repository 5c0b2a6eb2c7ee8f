"""`torch.set_default_device`: what describes a pass stays on the CPU, whatever is made without a device."""

import pytest
import torch
from transformers import DynamicCache

import swaa
from families import tiny_model

CONFIGS = {
    "sinks": swaa.SWAAConfig(window=7, sinks=3),
    "naive": swaa.SWAAConfig(window=7),
    "tail": swaa.SWAAConfig(window=7, sinks=3, fa_decode=True, dense_tail=2),
    "heads": swaa.SWAAConfig(window=7, sinks=3, full_heads={1: [0]}),
}
IDS = torch.randint(3, 101, (2, 60), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones(2, 60, dtype=torch.long)
PADDED[1, :41] = 0


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_passes_are_described_on_the_cpu(config, mask, backend):
    model = swaa.adapt(tiny_model(), config.replace(backend=backend))
    positions = torch.arange(60).expand(2, -1) if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)

    def run(cache):
        logits = []
        for low, high in ((0, 45), (45, 58), (58, 59), (59, 60)):
            extra = {} if mask is None else {"attention_mask": mask[:, :high]}
            extra |= {"position_ids": positions[:, low:high], "past_key_values": cache}
            logits.append(model(IDS[:, low:high], use_cache=True, prompt_length=[50, 50], **extra).logits)
        return torch.cat(logits, dim=1)

    with torch.no_grad():
        expected = run(DynamicCache(config=model.config))
        # "meta" stands for a GPU: what lands there cannot be used beside the CPU's.
        with torch.device("meta"):
            assert torch.equal(run(DynamicCache(config=model.config)), expected)
