"""Arrays of weights from one representation to another: bits widened or rounded, rows reordered, blocks packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00}  # all ones: infinity or NaN


def narrow(values: Array) -> Array:
    """float32 as bf16 bits, rounded to the nearest, ties to even; *values* are finite."""
    bits = values.view("<u4")
    rounded: Array = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    return rounded


def widen(bits: Array) -> Array:
    """bf16 bits as float32, exactly: bf16 is the upper half of a float32."""
    wide = bits.astype("<u4")
    wide <<= 16
    floats: Array = wide.view("<f4")
    return floats


def not_finite(block: Array, dtype: str) -> Array:
    """Where a block of a stored *dtype* (bf16 as its bits) is NaN or infinite; nowhere in packed bytes."""
    found: Array
    if dtype == "F32":
        found = ~np.isfinite(block)
    elif dtype in _EXPONENT:
        found = (block.view("<u2") & _EXPONENT[dtype]) == _EXPONENT[dtype]
    else:
        found = np.zeros(block.shape, dtype=bool)
    return found


def permute(array: Array, heads: int) -> Array:
    """Rows from Hugging Face's rotary layout (halves) to llama.cpp's (pairs), per head."""
    rows = array.shape[0]
    split = array.reshape(heads, 2, rows // heads // 2, *array.shape[1:])
    joined: Array = np.ascontiguousarray(split.swapaxes(1, 2)).reshape(array.shape)
    return joined


def separate_heads(array: Array, heads: int) -> Array:
    """Rows from q, k, v of one head after the other (GPTBigCode without multi-query) to all q, all k, all v."""
    head = array.shape[0] // heads // 3
    joined: Array = array.reshape(heads, 3, head, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
    return joined


def every_second(array: Array, first: int) -> Array:
    """Rows *first*, *first* + 2, ...: GPT-OSS interleaves the gate's rows with the input's."""
    return array[first::2]


def mxfp4(blocks: Array, scales: Array) -> Array:
    """Packed rows in llama.cpp's MXFP4 from Hugging Face's *blocks* (rows, n, 16) and *scales* (rows, n).

    Both hold 32 values of four bits and one shared exponent. Hugging Face puts values 2i and 2i+1 into byte i, the
    first in the low half; llama.cpp puts values i and i+16 there, behind the exponent.
    """
    values = np.empty((*blocks.shape[:-1], 32), dtype=np.uint8)
    values[..., 0::2] = blocks & 0x0F
    values[..., 1::2] = blocks >> 4
    packed = np.empty((*scales.shape, 17), dtype=np.uint8)
    packed[..., 0] = scales
    packed[..., 1:] = values[..., :16] | (values[..., 16:] << 4)
    rows: Array = packed.reshape(blocks.shape[0], -1)
    return rows
