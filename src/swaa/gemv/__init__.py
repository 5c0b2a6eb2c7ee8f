"""Linear layers on a single row: matrices times one vector (GEMV), at the speed at which the weights can be read.

One token's pass is nothing but these. A graph's layers that share their input (query, key and value; gate and up) are
computed in one launch, whatever the architecture calls them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from swaa.attention.launch import early_start
from swaa.attention.triton import unavailable

_LINEAR = (torch.nn.functional.linear, torch._C._nn.linear)
# Options for a single token, where launches count: kernels that are independent in one launch, each started while the
# one before it ends.
_SHORT = {"combo_kernels": True, "triton.enable_pdl": True}
# Matrices that one launch of the kernel takes.
_MOST = 3


@torch.library.custom_op("swaa::gemv", mutates_args=())
def gemv(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Multiply up to three matrices with one vector, summing in float32.

    Args:
        x: `[.., columns]`, one row in all.
        weights: each `[rows, columns]`, unit last stride, of x's dtype.

    Returns:
        `[.., rows of all]`, one matrix's after the other's.
    """
    from swaa.gemv.kernel import gemv as kernel

    sizes = [len(weight) for weight in weights]
    output = x.new_empty(*x.shape[:-1], sum(sizes))
    filled = [*weights, *[weights[0]] * (_MOST - len(weights))]
    columns = x.shape[-1]
    block, warps = _LONG_BLOCK if columns >= _LONG_ROW else _SHORT_BLOCK
    block = min(block, max(16, 1 << (columns - 1).bit_length()))
    kernel[(sum(sizes),)](
        x.contiguous(), *filled, output, *sizes, *[0] * (_MOST - len(sizes)), *(weight.stride(0) for weight in filled),
        columns, COLUMNS=block, CHUNKS=-(-columns // block), num_warps=warps, **early_start(x.device),
    )  # fmt: skip
    return output


# Columns that a program reads at a time, and its warps: 32 bytes a thread in bfloat16. Measured on an H200 inside the
# step of Qwen3-4B: one warp is best for rows of 2560 and 4096, four for 9728.
_SHORT_BLOCK, _LONG_BLOCK = (512, 1), (2048, 4)
_LONG_ROW = 8192


@gemv.register_fake
def _(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return x.new_empty(*x.shape[:-1], sum(weight.shape[0] for weight in weights))


def rewrite(graph: GraphModule) -> int:
    """Put `gemv` in place of the linear layers on a single row, in a graph of dynamo's.

    Returns:
        how many layers were replaced.
    """
    groups: dict[Node, list[Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in _LINEAR and _fits(node):
            groups.setdefault(_operands(node)[0], []).append(node)
    for x, nodes in groups.items():
        for start in range(0, len(nodes), _MOST):
            _join(graph, x, nodes[start : start + _MOST])
    if groups:
        graph.graph.lint()
        graph.recompile()
    return sum(map(len, groups.values()))


def inductor(graph: GraphModule, inputs: list[Any]) -> Any:
    """Compile by Inductor, after `rewrite`: a backend of `torch.compile`."""
    return torch._inductor.compile(graph, inputs, options=_SHORT if rewrite(graph) else {})


def _operands(node: Node) -> tuple[Any, Any, Any]:
    given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
    return given["input"], given["weight"], given.get("bias")


def _fits(node: Node) -> bool:
    x, weight, _ = (value.meta.get("example_value") if isinstance(value, Node) else None for value in _operands(node))
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor):
        return False
    # A size that is not known, a symbol, is no single row.
    if any(not isinstance(size, int) or size != 1 for size in x.shape[:-1]):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    if _operands(node)[1].op not in ("placeholder", "get_attr"):
        return False  # computed, perhaps only after another layer of the group
    same = x.dtype == weight.dtype and x.device == weight.device
    return same and weight.stride(-1) == 1 and unavailable(x.device, x.dtype, 0) is None


def _join(graph: GraphModule, x: Node, nodes: Sequence[Node]) -> None:
    weights = [_operands(node)[1] for node in nodes]
    for weight in weights:
        if weight.op == "get_attr":
            nodes[0].prepend(weight)
    with graph.graph.inserting_before(nodes[0]):
        whole = graph.graph.call_function(torch.ops.swaa.gemv.default, (x, weights))
    start = 0
    for node, weight in zip(nodes, weights, strict=True):
        size = weight.meta["example_value"].shape[0]
        with graph.graph.inserting_before(node):
            part = graph.graph.call_function(torch.narrow, (whole, -1, start, size))
            if (bias := _operands(node)[2]) is not None:
                part = graph.graph.call_function(torch.add, (part, bias))
        start += size
        node.replace_all_uses_with(part)
        graph.graph.erase_node(node)
