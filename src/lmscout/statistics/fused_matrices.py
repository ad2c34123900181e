"""bfloat16 in float32, and sums of it, from the device's units for products of matrices.

A product with the identity matrix leaves every number in the thread that gave it, and in
float32: one instruction takes the place of four conversions, or of six additions.
"""

import triton
import triton.language as tl

_HALF = "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32"
_WHOLE = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
_ZERO = "{.reg .f32 w, x, y, z; mov.f32 z, 0f00000000;"
# Of the identity, a thread has two numbers of a column: which, follows from its place in the warp.
_IDENTITY: tl.constexpr = tl.constexpr("""{
.reg .b32 lane, row, column;
.reg .pred low, high;
mov.u32 lane, %laneid;
shr.b32 column, lane, 2;
and.b32 row, lane, 3;
shl.b32 row, row, 1;
setp.eq.u32 low, row, column;
add.u32 row, row, 1;
setp.eq.u32 high, row, column;
mov.b32 $0, 0;
@low mov.b32 $0, 0x3f80;
@high mov.b32 $0, 0x3f800000;
}""")
_WIDENED: tl.constexpr = tl.constexpr(
    _ZERO + _HALF + " {$0, $1, $2, $3}, {$4, $5}, {$6}, {z, z, z, z};}"
)
_SUMS: tl.constexpr = tl.constexpr(
    _ZERO + _WHOLE + " {w, x, y, z}, {$4, $5, $6, $7}, {$12, $12}, {z, z, z, z};"
    + _WHOLE + " {$0, $1, $2, $3}, {$8, $9, $10, $11}, {$12, $12}, {w, x, y, z};}"
)  # fmt: skip


@triton.jit
def identity():
    """What a thread has of the identity matrix."""
    return tl.inline_asm_elementwise(
        _IDENTITY, "=r,r", [tl.full([], 0, tl.int32)], tl.int32, is_pure=True, pack=1
    )


@triton.jit
def widened_by(one, x):
    """A tile [rows, groups, 4] of bfloat16 in float32, exactly; `one` is `identity()`."""
    return tl.inline_asm_elementwise(
        _WIDENED, "=f,=f,=f,=f,r,r,r,r,r,r", [x, tl.broadcast_to(one, x.shape)], tl.float32,
        is_pure=True, pack=4,
    )  # fmt: skip


@triton.jit
def sum_by(one, a, b, c, d):
    """The sum of four such tiles in float32."""
    return tl.inline_asm_elementwise(
        _SUMS, "=&f,=&f,=&f,=&f,r,r,r,r,r,r,r,r,r,r,r,r",
        [a, b, c, d, tl.broadcast_to(one, a.shape)], tl.float32, is_pure=True, pack=4,
    )  # fmt: skip
