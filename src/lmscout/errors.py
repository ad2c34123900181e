"""The one exception that reaches a person, and how to know that memory does not suffice."""

_NO_MEMORY = (  # PyTorch's allocator, the system's, and C++'s
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "std::bad_alloc",
)


class LmscoutError(Exception):
    """Something the user can mend; the message is one line: what, where, and what to do.

    The command line prints the message and exits with code 2.  Anything else that is
    raised is a defect of lmscout and keeps its traceback.
    """


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, on an accelerator or a CPU.

    PyTorch has a class of its own for accelerators alone; its CPU allocator raises RuntimeError.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return isinstance(error, RuntimeError | OSError) and any(one in said for one in _NO_MEMORY)
