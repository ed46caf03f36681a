"""One file for weights of every form: packed.safetensors, each tensor raw or in one of four encodings.

The safetensors header's metadata tells each tensor's encoding; its parts are ordinary safetensors entries.

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
from compress.errors import UserError
from compress.storage.coding import bits_for, decode_codes, decode_sparse, encode_codes, encode_sparse

FILE = "packed.safetensors"


@dataclass(frozen=True)
class Sparse:
    """A tensor to be stored by its nonzero values."""

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


def save(folder: Path, tensors: dict, **about: str) -> None:
    """Writes folder/packed.safetensors from tensors by name (NumPy or torch arrays, Sparse, Codebook, Integer).

    `about` (text) is kept in the header beside the encodings.
    """
    import torch
    from safetensors.torch import save_file

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
    """(header entry, parts): the codes, or a bitmask and the codes of the nonzeros where those are smaller.

    Codes share bytes, and Huffman coding gives each byte a bit at least: where nearly all are zero, a mask costs less.
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


def load(folder: Path) -> tuple[dict, dict[str, str]]:
    """(tensors by name, the header's other texts): torch tensors for raw, sparse and codebook, Integer as it is.

    Raises UserError naming file and tensor for anything that does not fit.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    try:
        with safe_open(str(path), "pt") as file:
            about = dict(file.metadata() or {})
            parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        header = json.loads(about.pop("encodings"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; make the variant again") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path}: damaged, or not written by this project ({error}); make the variant again") from None

    def array(name: str) -> np.ndarray:
        return parts[name].numpy()

    tensors = {}
    for name, entry in header.items():
        try:
            encoding = entry["encoding"]
            if encoding == "raw":
                tensors[name] = parts[name]
                continue
            shape = tuple(entry["shape"])
            count = int(np.prod(shape))
            if encoding == "sparse":
                tensors[name] = torch.from_numpy(decode_sparse(array(f"{name}.mask"), array(f"{name}.values"), shape))
            elif encoding == "codebook":
                codes = decode_codes(array(f"{name}.codes"), entry["bits"], count).reshape(shape)
                tensors[name] = torch.from_numpy(Codebook(codes, array(f"{name}.codebook")).dense())
            elif encoding == "sparse-codebook":
                mask, codebook = array(f"{name}.mask"), array(f"{name}.codebook")
                codes = decode_codes(array(f"{name}.codes"), entry["bits"], entry["nonzeros"])
                tensors[name] = torch.from_numpy(decode_sparse(mask, codebook[codes], shape))
            elif encoding == "integer":
                bits = entry["bits"]
                codes = decode_codes(array(f"{name}.codes"), bits, count).astype(np.int16) - (1 << (bits - 1))
                tensors[name] = Integer(codes.astype(np.int8).reshape(shape), array(f"{name}.scale"), bits)
            else:
                raise ValueError(f"unknown encoding {encoding!r}")
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise UserError(f"{path}: tensor {name}: {type(error).__name__}: {error}") from None
    return tensors, about
