"""Reads a pickle of plain data without running it, and leaves its byte strings in the file.

A pickle is a program for a stack machine that can import and call anything. The machine here knows the instructions of
lists, tuples, numbers, strings, and numpy's numbers, bytes and arrays of these; there is nothing in it that imports,
calls or sets. A byte string is not loaded: what stands for it is where in the file its instruction is, eight bytes for
an image of any size. The instructions and their arguments are `pickletools`' but for strings: its `genops` fails at
Python 2's text pickles, whose strings are not ASCII, and `pickle.Unpickler` would load all images, whatever it allows.
"""

from __future__ import annotations

import ast
import functools
import os
import pickletools
import re
import struct
import types
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vargface.files import open_file

__all__ = ["Array", "ByteString", "Items", "Refused", "StringsInFile", "load_plain"]

# instruction -> the form of the length that follows it
_BYTES = {b"U": "<B", b"T": "<i", b"C": "<B", b"B": "<I", b"\x8e": "<Q", b"\x96": "<Q"}
_TEXT = {b"\x8c": "<B", b"X": "<I", b"\x8d": "<Q"}
# the same in a line of text
_BYTES_LINE, _TEXT_LINE = b"S", b"V"
# instructions that push their argument
_NUMBERS = (b"I", b"J", b"K", b"M", b"L", b"\x8a", b"\x8b", b"F", b"G")
_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}
_NOTHING = (b"\x80", b"\x95")  # the protocol's number, the length of a frame
# instructions that make nothing: a string, a constant (one bit of a flag), what takes from the stack
_SINGLE = (*_CONSTANTS, *_NOTHING, _BYTES_LINE, _TEXT_LINE, b"a", b"e", b"0", b"1", b".")
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
# names that a pickle of plain data may speak of -> what stands for them
_NAMES = {("_codecs", "encode"): "encode", ("numpy", "dtype"): "dtype", ("numpy", "ndarray"): "ndarray"}
for _module in ("builtins", "__builtin__"):
    _NAMES.update({(_module, "bytes"): "bytes", (_module, "bytearray"): "bytes"})
for _module in ("numpy.core", "numpy._core"):
    _NAMES[f"{_module}.multiarray", "scalar"] = "scalar"
    _NAMES[f"{_module}.multiarray", "_reconstruct"] = "reconstruct"
    _NAMES[f"{_module}.numeric", "_frombuffer"] = "frombuffer"
# types of array that can be read here: truth values, numbers, bytes, objects that are plain data themselves
_DTYPES = re.compile(rb"[<>|=]?(\?|b1|[iu][1248]|f[248]|[Sa]\d{0,9}|O8?)")
_LONGEST_LINE, _LONGEST_NAME = 1 << 26, 1 << 16
_READ = 1 << 14
_UNSET = -(1 << 63)
# what a pickle may make beside byte strings: some by itself, and one in so many bytes of it. An image of a pack takes
# up to 20 (as an array of its own, each of these in the memo), and has a thousand bytes.
_MADE, _BYTES_A_MADE = 100_000, 32


class Refused(Exception):
    """The pickle asks for something that plain data does not need."""


class ByteString(int):
    """Where the instruction of a byte string is; 0: an empty one; negative: of a text that is it in Latin-1."""


_EMPTY = ByteString(0)


class _Text(int):
    """Where the instruction of a text is."""


class _Name(str):
    """What stands for a function or a class."""


class _Dict:
    """A dictionary, which plain data does not have: nothing of it is kept."""


class _Dtype:
    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


class Array:
    """A numpy array (n,): type, length, and its content as a byte string, or as a list where the type is object."""

    dtype = np.dtype(np.uint8)
    content: Any = _EMPTY
    length = 0

    def set_shape(self, shape: Any) -> None:
        """Take `shape` (n,); raises ValueError for another: what order its items are in would be a guess."""
        if not (isinstance(shape, tuple) and len(shape) == 1 and type(shape[0]) is int and shape[0] >= 0):
            raise ValueError(f"it holds an array of shape {shape}, not of one dimension"[:100])
        (self.length,) = shape


class Items:
    """A list; eight bytes an item as long as all are byte strings."""

    def __init__(self) -> None:
        self._places: array | None = array("q")
        self._values: list = []

    def __len__(self) -> int:
        return len(self._values) if self._places is None else len(self._places)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values) if self._places is None else map(ByteString, self._places)

    def append(self, value: Any) -> None:
        """Add an item."""
        if self._places is not None and type(value) is not ByteString:
            self._values, self._places = [ByteString(place) for place in self._places], None
        (self._values if self._places is None else self._places).append(value)


class StringsInFile:
    """The byte strings of a pickle file; many threads may read it."""

    def __init__(self, path: str | Path) -> None:
        self._file = open_file(path)  # for as long as the object lives
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, place: int) -> bytes:
        """Return the byte string at `place`; raises ValueError where the file has it no longer."""
        if not place:
            return b""
        at = abs(place)
        piece = os.pread(self._file.fileno(), _READ, at)
        code = piece[:1]
        if code in (_BYTES_LINE, _TEXT_LINE):
            content = self._line(at + 1)
            return _of_literal(content) if code == _BYTES_LINE else _latin(content.decode("raw-unicode-escape"))
        form = _BYTES.get(code) or _TEXT.get(code)
        if form is None or len(piece) < 9:
            raise ValueError("the file was changed since it was opened")
        (length,) = struct.unpack_from(form, piece, 1)
        start = 1 + struct.calcsize(form)
        content = piece[start : start + length]
        if len(content) < length:
            content += os.pread(self._file.fileno(), length - len(content), at + len(piece))
        if len(content) < length:
            raise ValueError("the file became shorter since it was opened")
        return content if code in _BYTES else _latin(content.decode("utf-8"))

    def _line(self, at: int) -> bytes:
        content = b""
        while b"\n" not in content:
            block = os.pread(self._file.fileno(), _READ, at + len(content))
            if not block or len(content) > _LONGEST_LINE:
                raise ValueError("the file became shorter since it was opened")
            content += block
        return content.partition(b"\n")[0]


def load_plain(path: str | Path) -> tuple[Any, StringsInFile]:
    """Return what the pickle in file `path` holds, and what reads its byte strings.

    Lists come as `Items`, byte strings as `ByteString`, arrays as `Array`; tuples, numbers, None as they are, numpy's
    scalars as Python's.
    Raises Refused where the pickle asks for anything else, ValueError where it is damaged or none, OSError.
    """
    strings = StringsInFile(path)
    with open(path, "rb", buffering=1 << 16) as file:
        try:
            return _Machine(file, strings).run(), strings
        except (IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
            # too little on the stack, or something else than the instruction works on
            raise ValueError("its instructions make no sense") from error


def _of_literal(line: bytes) -> bytes:
    try:
        found = ast.literal_eval("b" + line.strip().decode("ascii"))
    except (SyntaxError, UnicodeDecodeError, MemoryError, RecursionError) as error:
        raise ValueError("a text line is no string") from error
    if not isinstance(found, bytes):
        raise ValueError("a text line is no string")
    return found


def _latin(text: str) -> bytes:
    return text.encode("latin-1")


class _Machine:
    """The stack machine."""

    def __init__(self, file: Any, strings: StringsInFile) -> None:
        self._file, self._strings = file, strings
        self._stack: list = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._memo_strings = array("q")
        self._memo_size = 0
        self._left = _MADE + strings.size // _BYTES_A_MADE
        self._instructions = self._what_they_do()

    def run(self) -> Any:
        """Return what is on the stack at the end."""
        read = types.SimpleNamespace(read=self._file.read, readline=lambda: self._file.readline(_LONGEST_NAME))
        while True:
            place = self._file.tell()
            code = self._file.read(1)
            if code in _BYTES or code in _TEXT:
                self._string(place, code)
                continue
            if code not in _SINGLE:
                self._left -= 1
                if not self._left:
                    raise Refused("makes more objects than its images account for")
            if code in (_BYTES_LINE, _TEXT_LINE):
                self._line()
                self._push((ByteString if code == _BYTES_LINE else _Text)(place))
            elif code == b".":
                return self._stack.pop()
            elif code in self._instructions:
                takes = pickletools.code2op[code.decode("latin-1")].arg
                self._instructions[code](*([takes.reader(read)] if takes else []))
            elif code in (b"P", b"Q"):
                if code == b"P":
                    self._line()  # half of all files that are no pickles end here
                raise Refused("asks for an object outside of the file")
            elif code in (b"i", b"o", b"\x81", b"\x92", b"\x82", b"\x83", b"\x84"):
                raise Refused("asks to run a class of its own")
            else:
                raise ValueError(f"instruction {code!r} at byte {place} is unknown" if code else self._ends())

    def _what_they_do(self) -> dict[bytes, Callable[..., object]]:
        stack, push = self._stack, self._push
        numbers = {code: push for code in _NUMBERS}
        constants = {code: functools.partial(push, value) for code, value in _CONSTANTS.items()}
        tuples = {code: functools.partial(self._tuple, size) for code, size in _TUPLES.items()}
        nothing = {code: lambda _: None for code in _NOTHING}
        memo = {code: lambda key: self._put(key, stack[-1]) for code in (b"p", b"q", b"r")}
        memo.update({code: lambda key: push(self._get(key)) for code in (b"g", b"h", b"j")})
        return {
            **numbers,
            **constants,
            **tuples,
            **nothing,
            **memo,
            b"\x94": lambda: self._put(self._memo_size, stack[-1]),
            b"(": lambda: self._marks.append(len(stack)),
            b"]": lambda: push(Items()),
            b")": lambda: push(()),
            b"}": lambda: push(_Dict()),
            b"a": lambda: self._extend([stack.pop()]),
            b"e": lambda: self._extend(self._marked()),
            b"l": lambda: self._list(self._marked()),
            b"t": lambda: push(tuple(self._marked())),
            b"d": lambda: (self._marked(), push(_Dict())),
            b"s": lambda: (stack.pop(), stack.pop()),
            b"u": self._marked,
            b"0": stack.pop,
            b"1": self._marked,
            b"2": lambda: push(stack[-1]),
            b"c": lambda name: push(_name(*name.split(" ", 1))),
            b"\x93": lambda: push(_name(*reversed([self._text(stack.pop()), self._text(stack.pop())]))),
            b"R": self._reduce,
            b"b": self._build,
        }

    # --- the file

    def _ends(self) -> str:
        return f"it ends at byte {self._strings.size}, in the middle"

    def _line(self) -> None:
        if not self._file.readline(_LONGEST_LINE).endswith(b"\n"):
            raise ValueError(self._ends())

    def _string(self, place: int, code: bytes) -> None:
        form = _BYTES.get(code) or _TEXT[code]
        (length,) = struct.unpack(form, self._file.read(struct.calcsize(form)))
        if not 0 <= length <= self._strings.size - self._file.tell():
            raise ValueError(self._ends())
        self._file.seek(length, os.SEEK_CUR)
        self._push(ByteString(place) if code in _BYTES else _Text(place))

    # --- the stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _marked(self) -> list:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _extend(self, items: Sequence) -> None:
        into = self._stack[-1]
        if not isinstance(into, Items):
            raise TypeError(type(into))
        for item in items:
            into.append(item)

    def _tuple(self, size: int) -> None:
        self._stack[-size:] = [tuple(self._stack[-size:])]

    def _list(self, items: Sequence) -> None:
        self._push(Items())
        self._extend(items)

    def _put(self, key: int, value: Any) -> None:
        self._memo_size += 1
        if type(value) is ByteString and 0 <= key <= len(self._memo_strings) + 64:
            self._memo_strings.extend([_UNSET] * (key + 1 - len(self._memo_strings)))
            self._memo_strings[key] = value
            self._memo.pop(key, None)
        else:
            self._memo[key] = value

    def _get(self, key: int) -> Any:
        if key in self._memo:
            return self._memo[key]
        if self._memo_strings[key] == _UNSET:
            raise KeyError(key)
        return ByteString(self._memo_strings[key])

    # --- what may be built

    def _text(self, place: Any) -> str:
        if not isinstance(place, _Text):
            raise TypeError(type(place))
        return self._strings.read(place).decode("latin-1")

    def _reduce(self) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if not (isinstance(name, _Name) and isinstance(arguments, tuple)):
            raise TypeError(type(name))
        makers = {
            "encode": self._as_bytes,
            "bytes": self._as_bytes,
            "dtype": self._as_dtype,
            "scalar": self._as_scalar,
            "reconstruct": lambda *_: Array(),
            "frombuffer": self._from_buffer,
        }
        self._push(makers[name](*arguments))

    def _build(self) -> None:
        state, value = self._stack.pop(), self._stack[-1]
        if isinstance(value, Array):
            _, shape, of_type, _, content = state
            value.set_shape(shape)
            value.dtype, value.content = of_type.dtype, content
            if not (value.dtype.hasobject and isinstance(content, Items)):
                value.content = self._as_bytes(content)
        elif isinstance(value, _Dtype):  # byte order; the types here have no fields
            value.dtype = value.dtype.newbyteorder(self._strings.read(self._as_bytes(state[1])).decode("ascii"))
        else:
            raise Refused(f"sets the state of a {type(value).__name__.strip('_').lower()}")

    def _as_bytes(self, content: Any = _EMPTY, _encoding: Any = None) -> ByteString:
        if isinstance(content, _Text):
            return ByteString(-content)
        if not isinstance(content, ByteString):
            raise Refused(f"makes bytes of {type(content).__name__}")
        return content

    def _as_dtype(self, name: Any, *_: Any) -> _Dtype:
        name = self._strings.read(self._as_bytes(name))
        if not _DTYPES.fullmatch(name):
            raise Refused(f"holds an array of type {name!r}"[:100])
        return _Dtype(np.dtype(name.decode("ascii")))

    def _as_scalar(self, of_type: _Dtype, content: Any) -> Any:
        content = self._as_bytes(content)
        if of_type.dtype.kind == "S":
            return content
        return np.frombuffer(self._strings.read(content), dtype=of_type.dtype, count=1)[0].item()

    def _from_buffer(self, content: Any, of_type: _Dtype, shape: Any, *_: Any) -> Array:
        made = Array()
        made.set_shape(shape)
        made.dtype, made.content = of_type.dtype, self._as_bytes(content)
        return made


def _name(module: str, name: str) -> _Name:
    try:
        return _Name(_NAMES[module, name])
    except KeyError:
        raise Refused(f"asks to run {module}.{name}"[:100]) from None
