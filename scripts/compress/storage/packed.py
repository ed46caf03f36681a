"""One file for weights of every form: packed.safetensors, each tensor raw or in one of four encodings.

The metadata in the safetensors header names each tensor's encoding; its parts are ordinary safetensors entries.

raw              name                                   the tensor itself
sparse           name.mask, name.values                 coded bitmask and the nonzero values
codebook         name.codes, name.codebook              coded indices into float values [k]
sparse-codebook  name.mask, name.codes, name.codebook   coded bitmask and the codebook of the nonzero values
integer          name.codes, name.scale                 coded signed integers of 2 to 8 bits, times a scale per row
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from compress.errors import UserError
from compress.storage.coding import bits_for, decode_codes, decode_sparse, encode_codes, encode_sparse
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FILE = "packed.safetensors"
INT8 = "int8-dynamic"  # value of the header's field `execution`: compute with the integers themselves


@dataclass(frozen=True)
class Sparse:
    """A tensor that is stored as its nonzero values."""

    values: np.ndarray


@dataclass(frozen=True)
class Codebook:
    """A tensor of few distinct values: values = codebook[codes]. codes uint8; codebook float32 [k <= 256]."""

    codes: np.ndarray
    codebook: np.ndarray

    def dense(self) -> np.ndarray:
        return self.codebook[self.codes]


@dataclass(frozen=True)
class Integer:
    """A matrix of signed integers: values = codes * scale. codes int8 [rows, ...]; scale float32 [rows] or [1]."""

    codes: np.ndarray
    scale: np.ndarray
    bits: int

    def dense(self) -> np.ndarray:
        return self.codes.astype(np.float32) * self.scale.reshape(-1, *[1] * (self.codes.ndim - 1))


def write_packed(model: torch.nn.Module, folder: Path, encoded: dict, execution: str = "dense") -> None:
    """Writes config.json and packed.safetensors: the model's state with the `encoded` tensors replacing its own."""
    model.config.save_pretrained(folder)
    state = {name: value for name, value in model.state_dict().items() if name not in encoded}
    save_tensors(folder, state | encoded, execution=execution)


def save_tensors(folder: Path, tensors: dict, **about: str) -> None:
    """Writes folder/packed.safetensors from tensors by name (NumPy or torch arrays, Sparse, Codebook, Integer).

    `about` is stored as text in the header.
    """
    parts, header = {}, {}
    for name, value in tensors.items():
        if isinstance(value, Sparse):
            header[name] = {"encoding": "sparse", "shape": value.values.shape}
            parts[f"{name}.mask"], parts[f"{name}.values"] = encode_sparse(value.values)
        elif isinstance(value, Codebook):
            header[name], coded = _encode_codebook(value)
            parts |= {f"{name}.{part}": array for part, array in coded.items()}
        elif isinstance(value, Integer):
            header[name] = {"encoding": "integer", "shape": value.codes.shape, "bits": value.bits}
            unsigned = (value.codes.astype(np.int16) + (1 << (value.bits - 1))).astype(np.uint8)
            parts[f"{name}.codes"], parts[f"{name}.scale"] = encode_codes(unsigned, value.bits), value.scale
        else:
            header[name] = {"encoding": "raw"}
            parts[name] = value
    tensors = {k: v.contiguous() if torch.is_tensor(v) else torch.from_numpy(np.array(v)) for k, v in parts.items()}
    save_file(tensors, str(folder / FILE), metadata={**about, "encodings": json.dumps(header)})


def _encode_codebook(value: Codebook) -> tuple[dict, dict[str, np.ndarray]]:
    """(header entry, parts): the codes, or a bitmask and the codes of the nonzeros if those are smaller.

    Several codes share a byte, and Huffman coding spends at least one bit on a byte: a mask is cheaper for a tensor
    that is nearly all zeros.
    """
    bits = bits_for(len(value.codebook))
    whole = {"codes": encode_codes(value.codes, bits), "codebook": value.codebook}
    entry = {"encoding": "codebook", "shape": value.codes.shape, "bits": bits}
    zeros = np.flatnonzero(value.codebook == 0)
    if len(zeros) == 0:
        return entry, whole
    kept = value.codes != zeros[0]
    codes = value.codes[kept]
    fewer = bits_for(len(value.codebook) - 1)
    sparse = {"mask": encode_codes(kept, 1), "codes": encode_codes(codes - (codes > zeros[0]), fewer)}
    sparse["codebook"] = np.delete(value.codebook, zeros[0])
    if sum(part.nbytes for part in sparse.values()) >= sum(part.nbytes for part in whole.values()):
        return entry, whole
    return entry | {"encoding": "sparse-codebook", "bits": fewer, "nonzeros": len(codes)}, sparse


def load_tensors(folder: Path) -> tuple[dict, dict[str, str]]:
    """(tensors by name, the header's other texts): torch tensors for raw, sparse and codebook; Integer objects.

    Raises UserError naming the file and the tensor if the file is missing, damaged or inconsistent.
    """
    path = folder / FILE
    try:
        with safe_open(str(path), "pt") as file:
            about = dict(file.metadata() or {})
            parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        header = json.loads(about.pop("encodings"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; remove {folder} and run make all") from None
    except (SafetensorError, KeyError, ValueError) as error:
        what = f"damaged, or not written by this project ({error})"
        raise UserError(f"{path}: {what}; remove {folder} and run make all") from None
    tensors = {}
    for name, entry in header.items():
        try:
            tensors[name] = _decode(name, entry, parts)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise UserError(f"{path}: tensor {name}: {type(error).__name__}: {error}") from None
    return tensors, about


def _decode(name: str, entry: dict, parts: dict[str, torch.Tensor]):
    """The tensor `name` from its header entry and the parts in the file."""

    def array(part: str) -> np.ndarray:
        return parts[f"{name}.{part}"].numpy()

    encoding = entry["encoding"]
    if encoding == "raw":
        return parts[name]
    shape = tuple(entry["shape"])
    count = int(np.prod(shape))
    if encoding == "sparse":
        return torch.from_numpy(decode_sparse(array("mask"), array("values"), shape))
    if encoding == "codebook":
        codes = decode_codes(array("codes"), entry["bits"], count).reshape(shape)
        return torch.from_numpy(Codebook(codes, array("codebook")).dense())
    if encoding == "sparse-codebook":
        mask, codebook = array("mask"), array("codebook")
        codes = decode_codes(array("codes"), entry["bits"], entry["nonzeros"])
        return torch.from_numpy(decode_sparse(mask, codebook[codes], shape))
    if encoding == "integer":
        bits = entry["bits"]
        codes = decode_codes(array("codes"), bits, count).astype(np.int16) - (1 << (bits - 1))
        return Integer(codes.astype(np.int8).reshape(shape), array("scale"), bits)
    raise ValueError(f"unknown encoding {encoding!r}")
