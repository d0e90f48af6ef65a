"""The portable operators' ONNX function bodies: what each node of domain ``maskrcnn`` means, in standard operators.

A backend that knows an operator (the TensorRT plugins) takes the node; any other inlines the body. The bodies are
the definition: mmdet's arithmetic in mmdet's order, so that onnxruntime keeps the same boxes PyTorch keeps.
"""

from collections.abc import Iterable

import onnx
from onnx import parser

DOMAIN = "maskrcnn"
DOMAIN_VERSION = 1


def grouped_nms_function(opset: int) -> onnx.FunctionProto:
    """Return the body of ``GroupedNMS``: shift each group to a place of its own, then NonMaxSuppression.

    The shift is that of mmcv's ``batched_nms``, float32 rounding included: group * (largest coordinate among the
    candidates + 1). Where coordinates are negative, which mmcv does not provide for, the distance grows by the
    most negative one, so that groups never meet.
    """
    maximum = _reduce("ReduceMax", opset)
    minimum = _reduce("ReduceMin", opset)
    return _parse(
        f"""
        GroupedNMS <iou_threshold, score_threshold, max_output> (boxes, scores, groups) => (indices, count)
        {{
            score_thr = Constant <value_float: float = @score_threshold> ()
            iou_thr = Constant <value_float: float = @iou_threshold> ()
            rows = Constant <value_int: int = @max_output> ()
            zero = Constant <value_float: float = 0.0> ()
            one = Constant <value_float: float = 1.0> ()
            axis0 = Constant <value_ints: ints = [0]> ()
            axis1 = Constant <value_ints: ints = [1]> ()
            last = Constant <value_ints: ints = [-1]> ()
            box_axes = Constant <value_ints: ints = [1, 2]> ()
            zero_i = Constant <value_int: int = 0> ()
            one_i = Constant <value_int: int = 1> ()

            candidate = Greater (scores, score_thr)
            candidate_column = Unsqueeze (candidate, last)
            candidate_boxes = Where (candidate_column, boxes, zero)
            {maximum("largest", "candidate_boxes", "box_axes", [1, 2])}
            {minimum("smallest_any", "candidate_boxes", "box_axes", [1, 2])}
            smallest = Min (smallest_any, zero)
            extent = Sub (largest, smallest)
            stride = Add (extent, one)
            group = Cast <to = 1> (groups)
            group_column = Unsqueeze (group, last)
            shift = Mul (group_column, stride)
            shifted = Add (boxes, shift)

            class_scores = Unsqueeze (scores, axis1)
            selected = NonMaxSuppression (shifted, class_scores, rows, iou_thr, score_thr)
            image = Gather <axis = 1> (selected, zero_i)
            two_i = Add (one_i, one_i)
            index = Gather <axis = 1> (selected, two_i)

            batch = Shape <start = 0, end = 1> (scores)
            batch_scalar = Squeeze (batch, axis0)
            images = Range (zero_i, batch_scalar, one_i)
            images_column = Unsqueeze (images, axis1)
            image_row = Unsqueeze (image, axis0)
            member = Equal (images_column, image_row)
            member_i = Cast <to = 7> (member)
            count_i = ReduceSum <keepdims = 0> (member_i, axis1)
            start = CumSum <exclusive = 1> (count_i, zero_i)
            num_selected = Shape <start = 0, end = 1> (selected)
            num_selected_scalar = Squeeze (num_selected, axis0)
            order = Range (zero_i, num_selected_scalar, one_i)
            image_start = Gather (start, image)
            row = Sub (order, image_start)
            image_column = Unsqueeze (image, axis1)
            row_column = Unsqueeze (row, axis1)
            place = Concat <axis = 1> (image_column, row_column)
            rows_vector = Unsqueeze (rows, axis0)
            shape = Concat <axis = 0> (batch, rows_vector)
            empty = ConstantOfShape <value: tensor = int64[1] {{-1}}> (shape)
            indices_i = ScatterND (empty, place, index)
            indices = Cast <to = 6> (indices_i)
            count = Cast <to = 6> (count_i)
        }}
        """,
        opset,
    )


def multi_level_roi_align_function(opset: int, num_levels: int) -> onnx.FunctionProto:
    """Return the body of ``MultiLevelRoiAlign`` for a number of feature maps: RoIAlign of each level's own RoIs."""
    levels = range(num_levels)
    features = ", ".join(f"feature_{i}" for i in levels)
    boundaries = "\n".join(
        f"""
            boundary_{i} = Constant <value_float: float = {2.0**i}> ()
            above_{i} = GreaterOrEqual (size, boundary_{i})
            step_{i} = Cast <to = 7> (above_{i})
            level_{i} = Add (level_{i - 1}, step_{i})"""
        for i in levels[1:]
    )
    align = "\n".join(
        f"""
            number_{i} = Constant <value_int: int = {i}> ()
            on_{i} = Equal (level_{num_levels - 1}, number_{i})
            found_{i} = NonZero (on_{i})
            index_{i} = Squeeze (found_{i}, axis0)
            scale_{i} = Gather (scales, number_{i})
            own_{i} = Gather (boxes, index_{i})
            scaled_{i} = Mul (own_{i}, scale_{i})
            image_{i} = Gather (image, index_{i})
            aligned_{i} = RoiAlign <output_height: int = @output_height, output_width: int = @output_width,
                sampling_ratio: int = @sampling_ratio, mode: string = @mode,
                coordinate_transformation_mode: string = @coordinate_transformation_mode>
                (feature_{i}, scaled_{i}, image_{i})"""
        for i in levels
    )
    return _parse(
        f"""
        MultiLevelRoiAlign <output_height, output_width, spatial_scales, finest_scale, sampling_ratio, mode,
            coordinate_transformation_mode> (rois, {features}) => (output)
        {{
            scales = Constant <value_floats: floats = @spatial_scales> ()
            finest = Constant <value_float: float = @finest_scale> ()
            epsilon = Constant <value_float: float = 0.000001> ()
            axis0 = Constant <value_ints: ints = [0]> ()
            axis1 = Constant <value_ints: ints = [1]> ()
            parts = Constant <value_ints: ints = [1, 4]> ()
            one_i = Constant <value_int: int = 1> ()
            zero_i = Constant <value_int: int = 0> ()
            image_f, boxes = Split <axis = 1> (rois, parts)
            image_flat = Squeeze (image_f, axis1)
            image = Cast <to = 7> (image_flat)
            top_left_i = Constant <value_ints: ints = [0, 1]> ()
            bottom_right_i = Constant <value_ints: ints = [2, 3]> ()
            top_left = Gather <axis = 1> (boxes, top_left_i)
            bottom_right = Gather <axis = 1> (boxes, bottom_right_i)
            sides = Sub (bottom_right, top_left)
            width = Gather <axis = 1> (sides, zero_i)
            height = Gather <axis = 1> (sides, one_i)
            area = Mul (width, height)
            side = Sqrt (area)
            relative = Div (side, finest)
            size = Add (relative, epsilon)
            num_rois = Shape <start = 0, end = 1> (rois)
            level_0 = ConstantOfShape <value: tensor = int64[1] {{0}}> (num_rois)
            {boundaries}
            {align}
            by_level = Concat <axis = 0> ({", ".join(f"aligned_{i}" for i in levels)})
            order = Concat <axis = 0> ({", ".join(f"index_{i}" for i in levels)})
            num_rois_scalar = Squeeze (num_rois, axis0)
            position = Range (zero_i, num_rois_scalar, one_i)
            inverse = ScatterElements <axis = 0> (level_0, order, position)
            output = Gather <axis = 0> (by_level, inverse)
        }}
        """,
        opset,
    )


def paste_masks_function(opset: int) -> onnx.FunctionProto:
    """Return the body of ``PasteMasks``: two matrix products per mask.

    Bilinear sampling on a grid whose rows and columns are straight is separable: pixel (y, x) is
    ``weights_y[y] @ mask @ weights_x[x]`` with weights ``max(0, 1 - |u - j|)`` for the sample's position u and the
    mask's row or column j. GridSample computes the same, from a grid of 2 * H * W floats per mask.
    """

    def axis(name: str, low: int, pixels: str, cells: str) -> str:
        """Weights (B, K, pixels, cells) of one axis, zero outside mmdet's pasted region."""
        return f"""
            {name}_low_i = Constant <value_int: int = {low}> ()
            {name}_high_i = Constant <value_int: int = {low + 2}> ()
            {name}_low_flat = Gather <axis = 2> (boxes, {name}_low_i)
            {name}_high_flat = Gather <axis = 2> (boxes, {name}_high_i)
            {name}_low = Unsqueeze ({name}_low_flat, last)
            {name}_high = Unsqueeze ({name}_high_flat, last)
            {name}_range = Range (zero_i, {pixels}, one_i)
            {name}_pixel = Cast <to = 1> ({name}_range)
            {name}_center = Add ({name}_pixel, half)
            {name}_from_low = Sub ({name}_center, {name}_low)
            {name}_extent = Sub ({name}_high, {name}_low)
            {name}_ratio = Div ({name}_from_low, {name}_extent)
            {name}_twice = Mul ({name}_ratio, two)
            {name}_grid_raw = Sub ({name}_twice, one)
            {name}_abs = Abs ({name}_grid_raw)
            {name}_infinite = Greater ({name}_abs, huge)
            {name}_grid = Where ({name}_infinite, zero, {name}_grid_raw)
            {name}_shifted = Add ({name}_grid, one)
            {name}_cells_f = Cast <to = 1> ({cells})
            {name}_scaled = Mul ({name}_shifted, {name}_cells_f)
            {name}_off_by_one = Sub ({name}_scaled, one)
            {name}_position_flat = Mul ({name}_off_by_one, half)
            {name}_position = Unsqueeze ({name}_position_flat, last)
            {name}_cell_range = Range (zero_i, {cells}, one_i)
            {name}_cell = Cast <to = 1> ({name}_cell_range)
            {name}_offset = Sub ({name}_position, {name}_cell)
            {name}_distance = Abs ({name}_offset)
            {name}_near = Sub (one, {name}_distance)
            {name}_hat = Relu ({name}_near)
            {name}_floor = Floor ({name}_low)
            {name}_begin = Sub ({name}_floor, one)
            {name}_ceil = Ceil ({name}_high)
            {name}_end = Add ({name}_ceil, one)
            {name}_after = GreaterOrEqual ({name}_pixel, {name}_begin)
            {name}_before = Less ({name}_pixel, {name}_end)
            {name}_region_flat = And ({name}_after, {name}_before)
            {name}_region = Unsqueeze ({name}_region_flat, last)
            {name}_weights = Where ({name}_region, {name}_hat, zero)"""

    return _parse(
        f"""
        PasteMasks <threshold> (masks, boxes, canvas) => (output)
        {{
            level = Constant <value_float: float = @threshold> ()
            zero = Constant <value_float: float = 0.0> ()
            half = Constant <value_float: float = 0.5> ()
            one = Constant <value_float: float = 1.0> ()
            two = Constant <value_float: float = 2.0> ()
            huge = Constant <value_float: float = 3.4e38> ()
            zero_i = Constant <value_int: int = 0> ()
            one_i = Constant <value_int: int = 1> ()
            last = Constant <value_ints: ints = [-1]> ()
            axis0 = Constant <value_ints: ints = [0]> ()
            canvas_height = Shape <start = 2, end = 3> (canvas)
            canvas_width = Shape <start = 3, end = 4> (canvas)
            mask_height = Shape <start = 2, end = 3> (masks)
            mask_width = Shape <start = 3, end = 4> (masks)
            canvas_h = Squeeze (canvas_height, axis0)
            canvas_w = Squeeze (canvas_width, axis0)
            mask_h = Squeeze (mask_height, axis0)
            mask_w = Squeeze (mask_width, axis0)
            {axis("x", 0, "canvas_w", "mask_w")}
            {axis("y", 1, "canvas_h", "mask_h")}
            rows = MatMul (y_weights, masks)
            x_transposed = Transpose <perm = [0, 1, 3, 2]> (x_weights)
            pasted = MatMul (rows, x_transposed)
            inside = GreaterOrEqual (pasted, level)
            output = Cast <to = 2> (inside)
        }}
        """,
        opset,
    )


def functions_for(nodes: Iterable[onnx.NodeProto], opset: int) -> list[onnx.FunctionProto]:
    """Return the body of each operator of the domain that occurs among the nodes.

    Raises:
        ValueError: an operator of the domain without a body here, or MultiLevelRoiAlign nodes with different
            numbers of feature maps: a function's inputs are fixed.
    """
    functions: dict[str, onnx.FunctionProto] = {}
    for node in nodes:
        if node.domain != DOMAIN:
            continue
        function = _function_for(node, opset)
        if len(functions.setdefault(node.op_type, function).input) != len(node.input):
            raise ValueError(
                f"{node.op_type}: expected the same number of feature maps in every node, "
                f"found {len(functions[node.op_type].input) - 1} and {len(node.input) - 1}"
            )
    return list(functions.values())


def _function_for(node: onnx.NodeProto, opset: int) -> onnx.FunctionProto:
    if node.op_type == "GroupedNMS":
        return grouped_nms_function(opset)
    if node.op_type == "MultiLevelRoiAlign":
        return multi_level_roi_align_function(opset, len(node.input) - 1)
    if node.op_type == "PasteMasks":
        return paste_masks_function(opset)
    raise ValueError(
        f"domain {DOMAIN}: expected GroupedNMS, MultiLevelRoiAlign or PasteMasks, found {node.op_type}"
    )


def _reduce(op: str, opset: int):
    """Write a reduction with its axes as opset wants them: an attribute before 18, an input since."""

    def line(output: str, data: str, axes_name: str, axes: list[int]) -> str:
        if opset < 18:
            return f"{output} = {op} <axes = {axes}, keepdims = 1> ({data})"
        return f"{output} = {op} <keepdims = 1> ({data}, {axes_name})"

    return line


def _parse(body: str, opset: int) -> onnx.FunctionProto:
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>'
    function = parser.parse_function(header + body)
    for node in function.node:
        # onnxruntime before 1.20 derives the names of nodes it fuses from theirs, and refuses two that are equal.
        node.name = f"{function.name}/{node.output[0]}"
    return function
