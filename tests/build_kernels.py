"""Compile the kernels for a GPU that is not here, of this capability, for this type: `tests/build_kernels.py 90 bf16`.

Prints the name of each kernel, and whether its products run on the matrix units. A process of its own: the tests'
Triton interprets.
"""

import sys
from typing import Any

from triton import compile as build
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mu_sota.model import triton_kernels as kernels


def ptx_of(kernel: Any, dtype: str, capability: int, sizes: dict[str, Any], warps: int) -> str:
    """Build machine code, and return the assembly before it."""
    pointers = dict.fromkeys(("qkv", "output", "grad_output", "grad", "logits"), f"*{dtype}")
    pointers |= dict.fromkeys(("log_sums", "entropies", "grad_entropies", "constants", "losses"), "*fp32")
    pointers |= dict.fromkeys(("labels", "right"), "*i64") | dict.fromkeys(("scale", "root"), "fp32")
    signature = {name: "constexpr" if name in sizes else pointers.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=sizes)
    built = build(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    assert built.asm["cubin"]
    return str(built.asm["ptx"])


def main(capability: int, dtype: str) -> None:
    """All kernels."""
    tiles: dict[str, Any] = kernels._tiles(4)
    warps = tiles.pop("num_warps")
    for name in ("_attention_forward", "_attention_backward_queries", "_attention_backward_keys"):
        print(name, "mma" in ptx_of(getattr(kernels, name), dtype, capability, tiles, warps))
    for gradient in (False, True):
        sizes = {"gradient": gradient, "at_once": kernels._COLUMNS}
        print("_cross_entropy_rows", "mma" in ptx_of(kernels._cross_entropy_rows, dtype, capability, sizes, 8))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
