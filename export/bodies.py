"""Function bodies from text."""

import onnx
from onnx import parser

from runtime.graphs.operators import DOMAIN


def reduction(op: str, opset: int):
    """Write a reduction with its axes as opset wants them: an attribute before 18, an input since."""

    def line(output: str, data: str, axes_name: str, axes: list[int]) -> str:
        if opset < 18:
            return f"{output} = {op} <axes = {axes}, keepdims = 1> ({data})"
        return f"{output} = {op} <keepdims = 1> ({data}, {axes_name})"

    return line


def parse_body(body: str, opset: int) -> onnx.FunctionProto:
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>'
    function = parser.parse_function(header + body)
    for node in function.node:
        # onnxruntime before 1.20 derives the names of nodes it fuses from theirs, and refuses two that are equal.
        node.name = f"{function.name}/{node.output[0]}"
    return function
