"""Lossless coding of arrays: packed integers, sparse masks, Huffman codes. Pure functions on NumPy arrays.

Deep Compression (Han et al., ICLR 2016, section 4) stores indices and sparse weights Huffman-coded. Here the Huffman
coder is deflate's (zlib with Z_HUFFMAN_ONLY: no string matching). Short codes are first packed into bytes: the coder
works on bytes, and its loss of less than a bit is then paid per byte, not per code.
"""

import zlib

import numpy as np

DENSE, HUFFMAN = 0, 1  # the first byte of a coded block


def bits_for(values: int) -> int:
    """Bits that distinguish `values` >= 1 different values (at least 1)."""
    return max(1, int(values - 1).bit_length())


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned codes below 2**bits (any shape, 1 <= bits <= 8) -> uint8 [ceil(size * bits / 8)], high bits first."""
    codes = np.ascontiguousarray(codes).reshape(-1)
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= 1 << bits):
        raise ValueError(f"codes must lie in 0..{(1 << bits) - 1} to fit {bits} bits")
    if bits == 8:
        return codes.astype(np.uint8)
    # Every code becomes a row of its low `bits` bits; the stream is the rows in order.
    return np.packbits(np.unpackbits(codes.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :])


def unpack_bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of pack_bits: uint8 [count]; raises ValueError if the number of bytes does not fit."""
    if packed.size != -(-count * bits // 8):
        raise ValueError(f"{count} codes of {bits} bits need {-(-count * bits // 8)} bytes, not {packed.size}")
    if bits == 8:
        return packed.copy()
    stream = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    return np.packbits(np.pad(stream, ((0, 0), (8 - bits, 0))), axis=1).reshape(-1)


def encode_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes below 2**bits as a block of bytes: packed, or Huffman-coded if that is smaller."""
    packed = pack_bits(codes, bits)
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    huffman = coder.compress(_share_bytes(codes, bits).tobytes()) + coder.flush()
    kind, body = (HUFFMAN, huffman) if len(huffman) < packed.size else (DENSE, packed.tobytes())
    return np.frombuffer(bytes([kind]) + body, np.uint8)


def decode_codes(block: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of encode_codes: uint8 [count]; raises ValueError for a truncated or foreign block."""
    if block.size == 0:
        raise ValueError("empty block")
    if block[0] == DENSE:
        return unpack_bits(block[1:], bits, count)
    if block[0] != HUFFMAN:
        raise ValueError(f"unknown kind of block: {block[0]}")
    per_byte = 8 // bits
    decoder = zlib.decompressobj(-15)
    try:
        # One byte more than expected, to notice a block that is too long.
        shared = np.frombuffer(decoder.decompress(block[1:].tobytes(), -(-count // per_byte) + 1), np.uint8)
    except zlib.error as error:
        raise ValueError(f"damaged Huffman block: {error}") from None
    if not decoder.eof or shared.size != -(-count // per_byte):
        raise ValueError(f"truncated or overlong Huffman block: {count} codes of {bits} bits expected")
    return np.stack([shared >> bits * i & (1 << bits) - 1 for i in range(per_byte)], axis=1).reshape(-1)[:count]


def _share_bytes(codes: np.ndarray, bits: int) -> np.ndarray:
    """As many whole codes per byte as fit, the first in the lowest bits: split codes would compress worse."""
    per_byte = 8 // bits
    codes = codes.reshape(-1).astype(np.uint8)
    padded = np.pad(codes, (0, -codes.size % per_byte)).reshape(-1, per_byte)
    return np.bitwise_or.reduce(padded << np.arange(0, bits * per_byte, bits, dtype=np.uint8), axis=1)


def entropy_bytes(codes: np.ndarray) -> float:
    """Shannon entropy of the codes in bytes, as independent draws from their histogram."""
    _, counts = np.unique(codes, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def encode_sparse(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An array -> (coded bitmask of its nonzeros, the nonzeros in order, dtype kept)."""
    flat = values.reshape(-1)
    return encode_codes(flat != 0, 1), flat[flat != 0]


def decode_sparse(mask: np.ndarray, nonzeros: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of encode_sparse; raises ValueError if mask and nonzeros disagree."""
    kept = decode_codes(mask, 1, int(np.prod(shape))).astype(bool)
    if int(kept.sum()) != nonzeros.size:
        raise ValueError(f"the mask keeps {int(kept.sum())} values, but {nonzeros.size} are stored")
    out = np.zeros(kept.size, nonzeros.dtype)
    out[kept] = nonzeros
    return out.reshape(shape)
