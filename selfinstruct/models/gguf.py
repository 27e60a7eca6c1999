"""Read the header of a GGUF file without trusting a single length in it.

Format: ggml's `docs/gguf.md`. A file is magic, version, counts, key-value pairs, tensor infos, padding,
tensor data; all little-endian here. The reader also works out where the last tensor must end, so that a
download cut short is named as such before llama.cpp is asked.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from selfinstruct.errors import ModelFileError

_MAGIC = b"GGUF"
_CHUNK = 1 << 20
# A header holds the vocabulary: 10 MB for the largest known ones. Past this it is not a header.
_HEADER_LIMIT = 256 << 20
_KEY_LIMIT = 0xFFFF
_PAIR_LIMIT = 1 << 16
_TENSOR_LIMIT = 1 << 20
_DIMENSIONS = 4
_NESTING = 4

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING = 8
_ARRAY = 9

# ggml's tensor types (`ggml_type` in ggml.h): values in a block, bytes of a block.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip

_Value = int | float | bool | str | None


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself; "" and None where it says nothing.

    `parameters` is the number of weights, counted from the tensors. `context_length` is in tokens.
    `kind` is `general.type`: "model", "adapter", "mmproj", "imatrix".
    """

    version: int
    architecture: str
    name: str
    licence: str
    kind: str
    context_length: int | None
    chat_template: bool
    parameters: int
    size: int


def read_header(path: Path) -> Header:
    """Read and check the header of a GGUF file.

    Raises:
        ModelFileError: not there, not readable, not GGUF, damaged, cut short, or not a language model.
    """
    try:
        with path.open("rb") as file:
            return _read(_Cursor(path, file, path.stat().st_size))
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such model file. Give the path of a .gguf file.") from None
    except IsADirectoryError:
        raise ModelFileError(f"{path} is a folder. Give the path of the .gguf file in it.") from None
    except OSError as error:
        raise ModelFileError(f"{path}: the model file can't be read: {error.strerror or error}.") from None


def _read(cursor: _Cursor) -> Header:
    magic = cursor.take(4) if cursor.size >= 4 else b""
    if magic != _MAGIC:
        what = "is empty" if cursor.size == 0 else f"starts with {magic!r} instead of {_MAGIC!r}"
        raise ModelFileError(
            f"{cursor.path} is not a GGUF file: it {what}. llama.cpp runs GGUF files only: "
            "safetensors and PyTorch weights need converting (llama.cpp's convert_hf_to_gguf.py)."
        )
    version = cursor.scalar("I")
    if version not in (2, 3):
        hint = "it is big-endian" if version in (2 << 24, 3 << 24) else f"version {version} of the format"
        raise ModelFileError(f"{cursor.path}: {hint}; expected little-endian GGUF version 2 or 3. Convert it again.")
    tensors = cursor.count(_TENSOR_LIMIT, "tensors")
    pairs = cursor.count(_PAIR_LIMIT, "key-value pairs")
    values: dict[str, _Value] = {}
    for _ in range(pairs):
        key = cursor.text(_KEY_LIMIT)
        kind = cursor.scalar("I")
        values[key] = cursor.value(kind)
    end, parameters = 0, 0
    for _ in range(tensors):
        cursor.text(_KEY_LIMIT)
        dimensions = cursor.count(_DIMENSIONS, "dimensions of a tensor", "I")
        weights = math.prod(cursor.scalar("Q") for _ in range(dimensions))
        block = _BLOCKS.get(cursor.scalar("I"))
        offset = cursor.scalar("Q")
        parameters += weights
        # A type newer than this table still shows where it starts.
        end = max(end, offset + (-(-weights // block[0]) * block[1] if block else 0))
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
        raise cursor.damaged(f"general.alignment is {alignment!r}, expected a multiple of 8")
    start = -(-cursor.position // alignment) * alignment
    if tensors and start + end > cursor.size:
        raise ModelFileError(
            f"{cursor.path} is cut short: its tensors end at byte {start + end:,} and the file at {cursor.size:,}. "
            "Fetch it again."
        )
    architecture = _text(values, "general.architecture")
    if not architecture:
        raise cursor.damaged("general.architecture is missing")
    kind_of_file = _text(values, "general.type") or "model"
    if kind_of_file != "model" or architecture == "clip":
        raise ModelFileError(
            f"{cursor.path} is not a language model but a GGUF file of type {kind_of_file!r} ({architecture}). "
            "Give the file with the model's weights."
        )
    if not parameters:
        raise ModelFileError(
            f"{cursor.path} holds no weights (vocabulary only?). Give the file with the model's weights."
        )
    context = values.get(f"{architecture}.context_length")
    return Header(
        version=version,
        architecture=architecture,
        name=_text(values, "general.name"),
        licence=_text(values, "general.license"),
        kind=kind_of_file,
        context_length=context if isinstance(context, int) and context > 0 else None,
        chat_template=bool(_text(values, "tokenizer.chat_template")),
        parameters=parameters,
        size=cursor.size,
    )


def _text(values: dict[str, _Value], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""


class _Cursor:
    """A position in the header; every step forward is checked against the file's end first."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.size = size
        self.position = 0
        self._file = file
        self._buffer = bytearray()

    def damaged(self, why: str) -> ModelFileError:
        return ModelFileError(f"{self.path} is damaged: {why} (byte {self.position:,}). Fetch it again.")

    def take(self, length: int) -> bytes:
        self._need(length)
        piece = bytes(self._buffer[self.position : self.position + length])
        self.position += length
        return piece

    def scalar(self, code: str) -> int:
        value = self._unpack(code)
        assert isinstance(value, int)
        return value

    def count(self, limit: int, what: str, code: str = "Q") -> int:
        number = self.scalar(code)
        if number > limit:
            raise self.damaged(f"it claims {number:,} {what}, at most {limit:,} are believable")
        return number

    def text(self, limit: int | None = None) -> str:
        length = self.scalar("Q")
        if limit is not None and length > limit:
            raise self.damaged(f"a name of {length:,} bytes")
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> _Value:
        """Read one value; arrays are stepped over and answer None."""
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth == _NESTING:
            raise self.damaged(f"a value of unknown type {kind}" if kind != _ARRAY else "arrays nested too deep")
        element = self.scalar("I")
        number = self.scalar("Q")
        if element in _SCALARS:
            self._skip(number * struct.calcsize("<" + _SCALARS[element]))
        elif element == _STRING:
            for _ in range(number):
                self._skip(self.scalar("Q"))
        else:
            for _ in range(number):
                self.value(element, depth + 1)
        return None

    def _unpack(self, code: str) -> int | float | bool:
        length = struct.calcsize("<" + code)
        self._need(length)
        value: int | float | bool = struct.unpack_from("<" + code, self._buffer, self.position)[0]
        self.position += length
        return value

    def _skip(self, length: int) -> None:
        self._need(length)
        self.position += length

    def _need(self, length: int) -> None:
        end = self.position + length
        if end <= len(self._buffer):
            return
        if end > self.size:
            raise ModelFileError(
                f"{self.path} is cut short or damaged: its header needs {end:,} bytes and the file has {self.size:,}. "
                "Fetch it again."
            )
        if end > _HEADER_LIMIT:
            raise self.damaged(f"its header would be larger than {_HEADER_LIMIT >> 20} MB")
        self._buffer += self._file.read(max(end - len(self._buffer), _CHUNK))
        if end > len(self._buffer):
            raise self.damaged("the file shrank while it was read")
