"""4-bit weights for ONNX Runtime's own kernels: MatMulNBits and GatherBlockQuantized.

The operators are written here from their specification (ONNX Runtime's ContribOperators.md), because onnxruntime's
MatMulNBitsQuantizer imports a library that is not among its requirements (onnx_ir), and fits no scale.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from compress.errors import Skip
from compress.methods.integers import quantize_weight
from onnx import TensorProto, helper, numpy_helper

BLOCK = 32  # weights that share a scale: neighbours along a product's inputs, or in a row of a table
DOMAIN = "com.microsoft"


def quantize_onnx_int4(source: Path, target: Path) -> None:
    """Constant matrices of MatMul and Gather in 4 bits with a float scale per block; everything else stays float.

    Activations and sums are fp32. A matrix stays float if BLOCK does not divide its rows' length, and so do the pooler
    and the head, which are Gemm. Raises Skip if every matrix stays float.
    """
    model = onnx.load(str(source))
    graph, new = model.graph, {}
    matrices = {t.name: t for t in graph.initializer if len(t.dims) == 2 and t.data_type == TensorProto.FLOAT}
    for node in graph.node:
        product = node.op_type == "MatMul"
        tensor = matrices.get(node.input[product]) if product or node.op_type == "Gather" else None
        if tensor is None or tensor.dims[1 - product] % BLOCK:
            continue
        names = f"{tensor.name}.codes", f"{tensor.name}.scales"
        matrix = numpy_helper.to_array(tensor)
        new |= dict(zip(names, four_bits(matrix.T if product else matrix), strict=True))
        if product:
            inputs, attributes = [node.input[0], *names], {"K": tensor.dims[0], "N": tensor.dims[1]}
        else:
            codes = names[0]
            new[codes] = new[codes].reshape(len(matrix), -1)
            inputs, attributes = [codes, node.input[1], names[1]], {"gather_axis": 0, "quantize_axis": 1}
        kind = "MatMulNBits" if product else "GatherBlockQuantized"
        attributes |= {"bits": 4, "block_size": BLOCK}
        node.CopyFrom(helper.make_node(kind, inputs, node.output, node.name, domain=DOMAIN, **attributes))
    if not new:
        raise Skip(f"4 bits in ONNX Runtime: {BLOCK} divides the rows of no matrix")
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *(numpy_helper.from_array(array, name) for name, array in new.items())])
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    onnx.save(model, str(target))


def four_bits(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float [rows, columns] -> (uint8 [rows, blocks, BLOCK / 2], float32 [rows, blocks]): weight = (code - 8) * scale.

    Two codes share a byte, the first in the low bits.
    """
    integer = quantize_weight(torch.tensor(rows).reshape(-1, BLOCK), 4)
    codes = (integer.codes + 8).astype(np.uint8)
    shape = len(rows), -1
    return (codes[:, ::2] | codes[:, 1::2] << 4).reshape(*shape, BLOCK // 2), integer.scale.reshape(shape)
