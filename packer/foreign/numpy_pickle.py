"""A dict of numpy arrays out of a pickle, with nothing in it called: the MLX trainers' artifact.

An unpickler calls what the pickle names. Here every name that numpy's own pickles use stands for a
class of this file that only keeps its arguments; any other name is refused. The operations are read
through first, so that none is run that could reserve memory which the file does not hold.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np
import torch

from packer.errors import CheckpointError

# Everything that a dict of texts, numbers and arrays needs, and nothing that makes other objects.
OPERATIONS = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "REDUCE", "BUILD", "NEWOBJ"),
        *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "GLOBAL", "STACK_GLOBAL"),
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2"),
        *("LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    )
)
DTYPES = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "b1")


class Dtype:
    """What numpy.dtype was called with."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        if self.code not in DTYPES or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of dtype {self.code!r}")
        return np.dtype(f"{'<' if self.order in '=|' else self.order}{self.code}")


class Array:
    """An array as numpy's pickles describe it, nothing of it made yet."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> torch.Tensor:
        """Raises ValueError: bytes and shape do not agree."""
        if self.state is None:
            raise ValueError("an array without contents")
        _, shape, dtype, is_fortran, raw = self.state
        return tensor_of(raw, shape, dtype, bool(is_fortran))


class Buffer(Array):
    """An array of a pickle of protocol 5: buffer, dtype, shape, order."""

    def __init__(self, raw: object, dtype: object, shape: object, order: object) -> None:
        self.state = (1, shape, dtype, order == "F", raw)


class Scalar(Array):
    """A numpy number."""

    def __init__(self, dtype: object, raw: object) -> None:
        self.state = (1, (), dtype, False, raw)


def tensor_of(raw: object, shape: Any, dtype: object, is_fortran: bool) -> torch.Tensor:
    """The array's values as a tensor of its own. Raises ValueError."""
    if isinstance(raw, str):  # pickles of protocol 2 spell bytes as Latin-1 text
        raw = raw.encode("latin-1")
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, Dtype):
        raise ValueError(f"an array whose values are a {type(raw).__name__}")
    values = np.frombuffer(raw, dtype.numpy())
    size = 1
    for axis in shape:
        if type(axis) is not int or axis < 0:
            raise ValueError(f"an array of shape {shape!r}")
        size *= axis
    if size != values.size:
        raise ValueError(f"an array of shape {tuple(shape)} with {values.size:,} values")
    native = values.astype(values.dtype.newbyteorder("="))
    return torch.from_numpy(native.reshape(tuple(shape), order="F" if is_fortran else "C").copy())


def no_bytes() -> bytes:
    """Stands for bytes, by which protocol 2 spells an empty one."""
    return b""


def encode_text(text: str, encoding: str) -> bytes:
    """Stands for codecs.encode, which protocol 2 spells bytes with."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes spelled in {encoding!r}")
    return text.encode("latin-1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): Dtype,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): encode_text,
    ("__builtin__", "bytes"): no_bytes,
    ("builtins", "bytes"): no_bytes,
}
for _core in ("numpy.core", "numpy._core"):
    ALLOWED[f"{_core}.multiarray", "_reconstruct"] = Array
    ALLOWED[f"{_core}.multiarray", "scalar"] = Scalar
    ALLOWED[f"{_core}.numeric", "_frombuffer"] = Buffer


class Unpickler(pickle.Unpickler):
    """Knows the names above and no other."""

    def find_class(self, module: str, name: str) -> Any:
        """Raises CheckpointError: any other name, and says which."""
        if (module, name) not in ALLOWED:
            raise CheckpointError(
                f"it asks for {module}.{name}, which could run any code; only dicts, numbers, "
                "texts and numpy arrays are read"
            )
        return ALLOWED[module, name]


def read_numpy_pickle(data: bytes, source: str) -> object:
    """What the pickle holds, arrays as tensors. Raises CheckpointError: it holds anything else."""
    try:
        _check_operations(data)
        return _with_tensors(Unpickler(io.BytesIO(data)).load(), {})
    except CheckpointError as error:
        raise CheckpointError(f"{source}: is a pickle that is refused: {error}") from None
    except Exception as error:  # damaged pickles raise nearly every type there is
        raise CheckpointError(
            f"{source}: its pickle is damaged, or holds more than arrays "
            f"({type(error).__name__}: {error}); copy the file again"
        ) from None


def _check_operations(data: bytes) -> None:
    """Refuses operations that make other objects, and memo numbers beyond what was stored."""
    stored = 0
    end = 0
    for operation, argument, position in pickletools.genops(data):
        if operation.name not in OPERATIONS:
            raise CheckpointError(f"it holds the operation {operation.name}")
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            stored += 1
            if not isinstance(argument, int) or argument > 2 * stored + 64:
                raise CheckpointError(f"it stores value {stored} under number {argument}")
        end = (position or 0) + 1
    if end != len(data):
        raise CheckpointError(f"{len(data) - end:,} bytes follow its end")


def _with_tensors(value: object, seen: dict[int, object]) -> object:
    """Dicts and lists again, with tensors for arrays; what is named twice is made once."""
    if value is None or isinstance(value, str | bytes | int | float):
        return value
    if id(value) in seen:
        if seen[id(value)] is value:
            raise ValueError("a container that holds itself")
        return seen[id(value)]
    seen[id(value)] = value
    result: object
    if isinstance(value, Array):
        result = value.tensor()
    elif isinstance(value, dict):
        result = {key: _with_tensors(item, seen) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        result = [_with_tensors(item, seen) for item in value]
    else:
        raise ValueError(f"a {type(value).__name__}")
    seen[id(value)] = result
    return result
