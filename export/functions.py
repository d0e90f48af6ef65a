"""The portable operators' ONNX function bodies: what each node of domain ``maskrcnn`` means, in standard operators.

A backend that knows an operator (the TensorRT plugins) takes the node; any other inlines the body. The bodies are
the definition: mmdet's arithmetic in mmdet's order, so that onnxruntime keeps the same boxes PyTorch keeps.
"""

from collections.abc import Callable, Iterable

import onnx

from export.bodies import parse_body, reduction
from export.decoding import decode_detections_function, decode_proposals_function
from runtime.graphs.operators import DOMAIN

DOMAIN_VERSION = 1


def grouped_nms_function(opset: int) -> onnx.FunctionProto:
    """Return the body of ``GroupedNMS``: shift each group to a place of its own, then NonMaxSuppression.

    The shift is that of mmcv's ``batched_nms``, float32 rounding included: group * (largest coordinate among the
    candidates + 1). Where coordinates are negative, which mmcv does not provide for, the distance grows by the
    most negative one, so that groups never meet.
    """
    maximum = reduction("ReduceMax", opset)
    minimum = reduction("ReduceMin", opset)
    return parse_body(
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
    return parse_body(
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


def select_top_function(opset: int) -> onnx.FunctionProto:
    """Return the body of ``SelectTop``: TopK along a row. Ties go to the lower index, as ONNX says."""
    return parse_body(
        """
        SelectTop <k> (scores) => (values, indices)
        {
            k_scalar = Constant <value_int: int = @k> ()
            axis0 = Constant <value_ints: ints = [0]> ()
            k_vector = Unsqueeze (k_scalar, axis0)
            values, indices_i = TopK <axis = 1, largest = 1, sorted = 1> (scores, k_vector)
            indices = Cast <to = 6> (indices_i)
        }
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

    return parse_body(
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


def deform_conv2d_function(opset: int, *, modulated: bool) -> onnx.FunctionProto:
    """Return the body of ``DeformConv2d``: GridSample at every tap of every position, then a 1x1 convolution."""
    mode = "linear" if opset >= 20 else "bilinear"
    modulate = """
            mask_by_group = Reshape (mask, tap_shape)
            mask_column = Unsqueeze (mask_by_group, axis1)
            weighted = Mul (by_tap, mask_column)"""

    def axis(name: str, index: int, dims: tuple[int, int]) -> str:
        """Positions of one axis as GridSample takes them: (2 p + 1) / size - 1, without align_corners."""
        return f"""
            {name}_index = Constant <value_int: int = {index}> ()
            {name}_stride = Gather (strides, {name}_index)
            {name}_padding = Gather (paddings, {name}_index)
            {name}_dilation = Gather (dilations, {name}_index)
            {name}_size = Shape <start = {index + 2}, end = {index + 3}> (features)
            {name}_taps = Shape <start = {index + 2}, end = {index + 3}> (weight)
            {name}_taps_scalar = Squeeze ({name}_taps, axis0)
            {name}_outputs = Shape <start = {index + 2}, end = {index + 3}> (offset)
            {name}_outputs_scalar = Squeeze ({name}_outputs, axis0)
            {name}_tap = Range (zero_i, {name}_taps_scalar, one_i)
            {name}_tap_px = Mul ({name}_tap, {name}_dilation)
            {name}_output = Range (zero_i, {name}_outputs_scalar, one_i)
            {name}_output_px = Mul ({name}_output, {name}_stride)
            {name}_start = Sub ({name}_output_px, {name}_padding)
            {name}_tap_axes = Constant <value_ints: ints = {[d for d in range(4) if d != dims[0]]}> ()
            {name}_start_axes = Constant <value_ints: ints = {[d for d in range(4) if d != dims[1]]}> ()
            {name}_tap_4d = Unsqueeze ({name}_tap_px, {name}_tap_axes)
            {name}_start_4d = Unsqueeze ({name}_start, {name}_start_axes)
            {name}_grid_i = Add ({name}_tap_4d, {name}_start_4d)
            {name}_grid = Cast <to = 1> ({name}_grid_i)
            {name}_offset = Gather <axis = 3> (offset_by_tap, {name}_index)
            {name}_position = Add ({name}_grid, {name}_offset)
            {name}_twice = Mul ({name}_position, two)
            {name}_center = Add ({name}_twice, one)
            {name}_size_f = Cast <to = 1> ({name}_size)
            {name}_share = Div ({name}_center, {name}_size_f)
            {name}_normal = Sub ({name}_share, one)
            {name}_column = Unsqueeze ({name}_normal, last)"""

    inputs = "features, offset, weight, mask" if modulated else "features, offset, weight"
    return parse_body(
        f"""
        DeformConv2d <stride, padding, dilation, groups, deform_groups> ({inputs}) => (output)
        {{
            strides = Constant <value_ints: ints = @stride> ()
            paddings = Constant <value_ints: ints = @padding> ()
            dilations = Constant <value_ints: ints = @dilation> ()
            own_i = Constant <value_int: int = @deform_groups> ()
            one = Constant <value_float: float = 1.0> ()
            two = Constant <value_float: float = 2.0> ()
            zero_i = Constant <value_int: int = 0> ()
            one_i = Constant <value_int: int = 1> ()
            pair = Constant <value_ints: ints = [2]> ()
            rest = Constant <value_ints: ints = [-1]> ()
            ones = Constant <value_ints: ints = [1, 1]> ()
            axis0 = Constant <value_ints: ints = [0]> ()
            axis1 = Constant <value_ints: ints = [1]> ()
            last = Constant <value_ints: ints = [-1]> ()
            batch = Shape <start = 0, end = 1> (features)
            images = Mul (batch, own_i)
            image_size = Shape <start = 2, end = 4> (features)
            kernel_size = Shape <start = 2, end = 4> (weight)
            output_size = Shape <start = 2, end = 4> (offset)
            output_width = Shape <start = 3, end = 4> (offset)

            tap_offset_shape = Concat <axis = 0> (images, kernel_size, pair, output_size)
            offset_by_tap = Reshape (offset, tap_offset_shape)
            {axis("y", 0, (0, 2))}
            {axis("x", 1, (1, 3))}
            grid_5d = Concat <axis = -1> (x_column, y_column)
            grid_shape = Concat <axis = 0> (images, rest, output_width, pair)
            grid = Reshape (grid_5d, grid_shape)
            features_shape = Concat <axis = 0> (images, rest, image_size)
            features_by_group = Reshape (features, features_shape)
            samples = GridSample <mode = "{mode}", padding_mode = "zeros", align_corners = 0> (features_by_group, grid)

            taps = Mul (y_taps, x_taps)
            tap_shape = Concat <axis = 0> (images, rest, output_size)
            channels_shape = Concat <axis = 0> (images, rest, taps, output_size)
            by_tap = Reshape (samples, channels_shape)
            {modulate if modulated else "weighted = Identity (by_tap)"}
            columns_shape = Concat <axis = 0> (batch, rest, output_size)
            columns = Reshape (weighted, columns_shape)
            num_kernels = Shape <start = 0, end = 1> (weight)
            kernel_shape = Concat <axis = 0> (num_kernels, rest, ones)
            kernel = Reshape (weight, kernel_shape)
            output = Conv <group: int = @groups> (columns, kernel)
        }}
        """,
        opset,
    )


def select_masks_function(opset: int) -> onnx.FunctionProto:
    """Return the body of ``SelectMasks``: the channel of each detection's label as probabilities."""
    return parse_body(
        """
        SelectMasks (logits, labels) => (masks)
        {
            zero = Constant <value_int: int = 0> ()
            one = Constant <value_int: int = 1> ()
            zero_f = Constant <value_float: float = 0.0> ()
            zero_v = Constant <value_ints: ints = [0]> ()
            flat = Constant <value_ints: ints = [-1]> ()
            map_axes = Constant <value_ints: ints = [2, 3]> ()

            num_rows_v = Shape <start = 0, end = 1> (logits)
            num_classes_v = Shape <start = 1, end = 2> (logits)
            map_shape = Shape <start = 2, end = 4> (logits)
            maps_shape = Concat <axis = 0> (flat, map_shape)
            maps = Reshape (logits, maps_shape)
            num_rows = Squeeze (num_rows_v, zero_v)
            rows = Range (zero, num_rows, one)
            first_maps = Mul (rows, num_classes_v)
            label = Cast <to = 7> (labels)
            labels_row = Reshape (label, flat)
            last_class = Sub (num_classes_v, one)
            not_negative = Max (labels_row, zero)
            channel = Min (not_negative, last_class)
            places = Add (first_maps, channel)
            own = Gather <axis = 0> (maps, places)
            probabilities = Sigmoid (own)
            labels_shape = Shape (labels)
            masks_shape = Concat <axis = 0> (labels_shape, map_shape)
            shaped = Reshape (probabilities, masks_shape)
            is_absent = Less (label, zero)
            is_absent_map = Unsqueeze (is_absent, map_axes)
            masks = Where (is_absent_map, zero_f, shaped)
        }
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
        known = functions.setdefault(node.op_type, function)
        if len(known.input) == len(node.input) and known.attribute != function.attribute:
            raise ValueError(
                f"{node.op_type}: expected the same attributes in every node, found {', '.join(known.attribute)} and "
                f"{', '.join(function.attribute)}"
            )
        if len(known.input) != len(node.input):
            raise ValueError(
                f"{node.op_type}: expected the same number of feature maps in every node, "
                f"found {len(functions[node.op_type].input) - 1} and {len(node.input) - 1}"
            )
    return list(functions.values())


def _function_for(node: onnx.NodeProto, opset: int) -> onnx.FunctionProto:
    if node.op_type not in BODIES:
        names = ", ".join(sorted(BODIES))
        raise ValueError(f"domain {DOMAIN}: expected one of {names}, found {node.op_type}")
    return BODIES[node.op_type](opset, node)


# The body of each operator, by opset and node.
BODIES: dict[str, Callable[[int, onnx.NodeProto], onnx.FunctionProto]] = {
    "GroupedNMS": lambda opset, _: grouped_nms_function(opset),
    "SelectTop": lambda opset, _: select_top_function(opset),
    "PasteMasks": lambda opset, _: paste_masks_function(opset),
    "DecodeDetections": lambda opset, _: decode_detections_function(opset),
    "SelectMasks": lambda opset, _: select_masks_function(opset),
    "MultiLevelRoiAlign": lambda opset, node: multi_level_roi_align_function(opset, len(node.input) - 1),
    "DecodeProposals": lambda opset, node: decode_proposals_function(
        opset, (len(node.input) - 2) // 2, strides=any(a.name == "strides" for a in node.attribute)
    ),
    "DeformConv2d": lambda opset, node: deform_conv2d_function(opset, modulated=len(node.input) == 4),
}
