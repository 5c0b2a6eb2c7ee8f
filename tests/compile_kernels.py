"""Compile the kernels of a recorded step for a Hopper GPU, which needs none; prints their names.

Run by `test_gemv.py` in a process of its own: under the interpreter, which the other tests use, kernels cannot be
compiled, and what only GPUs have (the early start) is not looked at.
"""

import warnings

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from swaa.attention.kernels import decode
from swaa.attention.kernels.backward import key_gradient, output_products, query_gradient
from swaa.attention.kernels.common import COUNTS
from swaa.attention.kernels.forward import forward
from swaa.gemv.kernel import gemv

TENSORS = {"PART": "*fp32", "PART_TOP": "*fp32", "PART_NORM": "*fp32", "LSE": "*fp32", "RANGES": "*i32", "MASK": "*i1"}
TENSORS |= dict.fromkeys(("QUERY_RANK", "START_RANK", "DENSE", "KEY_RANK", "STOP"), "*i32")
TENSORS |= dict.fromkeys(("SLOT", "COLUMN", "PADDING"), "*i64")
NUMBERS = {"DIM": 128, "PAD": 128, "VDIM": 128, "VPAD": 128, "ROWS": 16, "KEYS": 64, "PLAIN": False, "SOFTCAP": False}
NUMBERS |= {"PRECISION": "ieee", "SPLITS": 64, "LINES": 16, "HAS_AUX": True, "RING": True, "SLOTS": 1024, "PDL": True}


def compiled(kernel, **constants):
    constants = {p.name: (NUMBERS | constants)[p.name] for p in kernel.params if p.is_constexpr}
    signature = {}
    for p in kernel.params:
        other = (
            TENSORS.get(p.name, "*bf16") if p.name.isupper() else "fp32" if p.name in ("scale", "softcap") else "i32"
        )
        signature[p.name] = "constexpr" if p.name in constants else other
    source = ASTSource(kernel, signature, {(i,): constants[n] for i, n in enumerate(signature) if n in constants})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"launch_pdl": True}).asm["ptx"]


def main():
    warnings.simplefilter("ignore")
    early = compiled(gemv, COLUMNS=512, CHUNKS=5)
    assert "ld.global" in early.partition("griddepcontrol.wait")[0], "no weight is on its way before the wait"
    for kernel in (decode.split, decode.merge, decode.write_slot):
        code = compiled(kernel)
        assert "griddepcontrol.wait" in code
        assert "griddepcontrol.launch_dependents" in code
        before = code.partition("griddepcontrol.wait")[0]
        assert "ld.global" not in before, f"{kernel.__name__} reads too early"
        assert "st.global" not in before, f"{kernel.__name__} writes too early"
        print(kernel.__name__)
    compiled(decode.describe_slots, DENSE=True)
    counted = [
        forward,
        output_products,
        query_gradient,
        key_gradient,
        decode.split,
        decode.merge,
        decode.describe_slots,
    ]
    for kernel in counted:
        # Strides, and what belongs to the model, may be built in.
        varying = [p for p in kernel.params if p.name in COUNTS and not p.is_constexpr]
        assert varying, f"{kernel.__name__} names no count as the others do"
        assert all(p.do_not_specialize for p in varying), f"{kernel.__name__} is built again for another length"
    print("gemv, describe_slots")


if __name__ == "__main__":
    main()
