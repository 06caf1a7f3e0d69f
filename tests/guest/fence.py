"""Arrays that touch a page which nobody may read or write: what strays out of them crashes."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

PROT_NONE = 0
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def fenced(values: np.ndarray, *, at_end: bool) -> np.ndarray:
    """A copy that ends right before a forbidden page, or begins right after one."""
    page = mmap.PAGESIZE
    inner = -(-values.nbytes // page) * page
    memory = np.frombuffer(mmap.mmap(-1, inner + 2 * page), np.uint8)
    for start in (0, page + inner):
        if libc.mprotect(memory.ctypes.data + start, page, PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    first = page + (inner - values.nbytes if at_end else 0)
    copy = memory[first : first + values.nbytes].view(values.dtype)
    copy[:] = values
    return copy
