"""Compile the kernels of a recorded step for a Hopper GPU, which needs none; prints their names.

Run by `test_gemv.py` in a process of its own: under the interpreter, which the other tests use, kernels cannot be
compiled, and what only GPUs have (the early start) is not looked at.
"""

import warnings

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from swaa.attention.kernels import decode
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
    print("gemv, describe_slots")


if __name__ == "__main__":
    main()
