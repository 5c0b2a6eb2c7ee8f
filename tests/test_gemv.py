"""Linear layers on a single row: the kernel (in Triton's interpreter), and where it is put into a graph."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from swaa.gemv import gemv, inductor, rewrite


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("columns", [7, 64, 513, 1100, 9000])
@pytest.mark.parametrize("sizes", [(1,), (9, 4), (16, 3, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_linear_layers(columns, sizes, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, columns, generator=generator).to(dtype)
    # Rows that do not follow each other, as in a part of a larger matrix.
    weights = [torch.randn(size, columns + 8, generator=generator).to(dtype)[:, :columns] for size in sizes]
    expected = torch.cat([nn.functional.linear(x.double(), weight.double()) for weight in weights], dim=-1)
    actual = gemv(x, weights)
    assert actual.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance * columns**0.5)


class Layer(nn.Module):
    """Four layers on one input, one on another, one with a bias."""

    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(24, size, bias=size == 5) for size in (8, 5, 12, 3))
        self.last = nn.Linear(28, 24)

    def forward(self, x):
        return self.last(torch.cat([layer(x) for layer in self.first], dim=-1).sin())


def counting(replaced):
    """A backend that runs what `rewrite` makes of a graph, and notes how many layers became how many launches."""

    def backend(graph, inputs):
        replaced.append((rewrite(graph), sum(n.target == torch.ops.swaa.gemv.default for n in graph.graph.nodes)))
        return graph.forward

    return backend


def compiled(model, replaced):
    return torch.compile(model, dynamic=True, backend=counting(replaced))


@torch.no_grad()
def test_layers_with_one_input_share_a_launch():
    torch.manual_seed(0)
    model, replaced = Layer(), []
    x = torch.randn(1, 1, 24)
    torch.testing.assert_close(compiled(model, replaced)(x), model(x))
    assert replaced == [(5, 3)]


@torch.no_grad()
@pytest.mark.parametrize("rows", [2, 9])
def test_more_rows_are_left_alone(rows):
    model, replaced = Layer(), []
    x = torch.randn(1, rows, 24)
    torch.testing.assert_close(compiled(model, replaced)(x), model(x))
    assert replaced == [(0, 0)]


def test_training_is_left_alone():
    model, replaced = Layer(), []
    compiled(model, replaced)(torch.randn(1, 1, 24)).sum().backward()
    assert replaced == [(0, 0)]
    assert model.last.weight.grad is not None


@torch.no_grad()
def test_inductor_compiles_the_rest():
    torch.manual_seed(0)
    model = Layer()
    x = torch.randn(1, 1, 24)
    torch.testing.assert_close(torch.compile(model, dynamic=True, backend=inductor)(x), model(x))


def test_kernels_compile_for_hopper_and_wait_in_time():
    command = [sys.executable, str(Path(__file__).parent / "compile_kernels.py")]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["split", "merge", "write_slot", "gemv,", "describe_slots"]
