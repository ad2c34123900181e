"""Steps of a column under way: copied to shared memory while those before them are added.

A thread copies what it will add itself, so that none waits for another, and no register is taken
by what is under way.  The blocks of instructions get tiles that they do not use, by which the
compiler gives their own to the same threads.
"""

import triton
import triton.language as tl

_BYTES = (4, 8, 16)  # that can be copied so
_SLOTS = (2, 4, 8)  # of a ring
_THREADS = (64, 128, 256, 512)  # of a program


def _ring(slots: int, size: int, threads: int) -> str:
    """Where a thread's places in the ring begin: size bytes in each tile of each step."""
    return _block(
        f".shared .align 16 .b8 ring[{slots * 4 * size * threads}];",
        ".reg .b32 thread, start;",
        "mov.u32 thread, %tid.x;",
        "mov.u32 start, ring;",
        f"mad.lo.u32 $0, thread, {size}, start;",
    )


def _copy(slots: int, size: int, threads: int) -> str:
    """Copy the rows $4 bytes apart after $1 to $2 if there are as many steps left after $3."""
    lines = [".reg .pred there;", ".reg .b64 a, b, c;"]
    lines += [f"setp.lt.s32 there, $3, {1 - slots};"]
    lines += ["add.s64 a, $1, $4;", "add.s64 b, a, $4;", "add.s64 c, b, $4;", "add.s64 $0, c, $4;"]
    for tile, source in enumerate(("a", "b", "c", "$0")):
        to = f"[$2+{tile * size * threads}]"
        lines.append(f"@there cp.async.ca.shared.global {to}, [{source}], {size};")
    return _block(*lines, "cp.async.commit_group;")


def _take(slots: int, size: int, threads: int) -> str:
    """Wait for the step that was copied longest ago, and load it."""
    words = size // 4
    lines = [f"cp.async.wait_group {slots - 1};"]
    for tile in range(4):
        into = ", ".join(f"${tile * words + word}" for word in range(words))
        vector, into = (f".v{words}", f"{{{into}}}") if words > 1 else ("", into)
        lines.append(f"ld.shared{vector}.b32 {into}, [${4 * words}+{tile * size * threads}];")
    return _block(*lines)


def _registers(size: int, element: int) -> str:
    """What `_take` writes and reads, for elements of 2 or 4 bytes."""
    kind, words, vector = "f" if element == 4 else "r", size // 4, size // element
    return ",".join([f"=&{kind}"] * 4 * words + ["r"] * vector + [kind] * words)


def _block(*lines: str) -> str:
    return "\n".join(("{", *lines, "}"))


_SHAPES = [(n, size, threads) for n in _SLOTS for size in _BYTES for threads in _THREADS]
_RING: tl.constexpr = tl.constexpr({shape: _ring(*shape) for shape in _SHAPES})
_COPY: tl.constexpr = tl.constexpr({shape: _copy(*shape) for shape in _SHAPES})
_TAKE: tl.constexpr = tl.constexpr({shape: _take(*shape) for shape in _SHAPES})
_REGISTERS: tl.constexpr = tl.constexpr(
    {(size, element): _registers(size, element) for size in _BYTES for element in (2, 4)}
)


@triton.jit
def ring_of(SLOTS: tl.constexpr, SIZE: tl.constexpr, THREADS: tl.constexpr):
    """The address of the thread's first place in a ring of SLOTS steps; to be called once."""
    return tl.inline_asm_elementwise(
        _RING[(SLOTS, SIZE, THREADS)], "=r,r", [tl.full([], 0, tl.int32)], tl.int32,
        is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def begin(
    pointers, ring, left, down, like,
    SLOTS: tl.constexpr, SIZE: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """Copy the first steps of a column, one less than there are SLOTS.

    `pointers` [rows, groups] are to the first SIZE bytes that each of the THREADS copies, and
    four tiles are a step, each `down` bytes after the one before; the column has as many steps
    as `left` is below zero.  `like` is any float32 that the threads have [rows, groups] of.

    Returns:
        The address of the last row copied so far.  The last place of the ring is free.
    """
    source = pointers.to(tl.int64) - down
    for place in tl.static_range(SLOTS - 1):
        source = _copied(
            source, ring + place * (4 * SIZE * THREADS), left + (place + 1 - SLOTS), down, like,
            SLOTS, SIZE, THREADS,
        )  # fmt: skip
    return source


@triton.jit
def follow(
    source, place, ring, left, down, like, tile,
    SLOTS: tl.constexpr, SIZE: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """Copy a step to the place of the one taken last, and take the one copied longest ago.

    `source` is what `begin` or this has returned, `place` the place in the ring, in bytes, and
    `left` says how many steps are left, the one to be taken among them.  `tile` [rows, groups,
    elements] is of the same type and on the same threads as what is taken.

    Returns:
        `source` and `place` after that, and four tiles.
    """
    source = _copied(source, ring + place, left, down, like, SLOTS, SIZE, THREADS)
    place = (place + 4 * SIZE * THREADS) & ((SLOTS - 1) * (4 * SIZE * THREADS))
    VECTOR: tl.constexpr = tile.shape[2]
    a, b, c, d = tl.inline_asm_elementwise(
        _TAKE[(SLOTS, SIZE, THREADS)], _REGISTERS[(SIZE, SIZE // VECTOR)],
        [tl.broadcast_to(ring + place, tile.shape), tile],
        (tile.dtype, tile.dtype, tile.dtype, tile.dtype), is_pure=False, pack=VECTOR,
    )  # fmt: skip
    return source, place, a, b, c, d


@triton.jit
def _copied(
    source, place, left, down, like,
    SLOTS: tl.constexpr, SIZE: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    return tl.inline_asm_elementwise(
        _COPY[(SLOTS, SIZE, THREADS)], "=&l,l,r,r,l,f", [source, place, left, down, like], tl.int64,
        is_pure=False, pack=1,
    )  # fmt: skip
