"""The bodies of ``DecodeProposals`` and ``DecodeDetections``: boxes from deltas, in mmdet's order of operations."""

import onnx

from export.bodies import parse_body

# Larger than any coordinate: the limit of boxes that are not clipped.
_LARGEST = 3.4028234663852886e38


def decode_proposals_function(opset: int, num_levels: int, *, strides: bool = False) -> onnx.FunctionProto:
    """Return the body of ``DecodeProposals``: the best anchors of every level, decoded.

    A level with fewer anchors than ``top`` is padded with scores of -1; the boxes of such rows mean nothing.

    Args:
        opset: of the model.
        num_levels: of the node.
        strides: the node has them, and ``priors`` are the first place's, which the body moves.
    """
    levels = range(num_levels)
    maps = ", ".join(f"{kind}_{level}" for kind in ("logits", "deltas") for level in levels)
    selected = "\n".join(_level(level) for level in levels)

    def all_levels(kind: str) -> str:
        return ", ".join(f"{kind}_{level}" for level in levels)

    return parse_body(
        f"""
        DecodeProposals <top, means, stds, max_ratio, clip, min_size{", strides" if strides else ""}>
            ({maps}, priors, image_sizes) => (boxes, scores)
        {{
            {_CONSTANTS}
            {_moved_priors(num_levels) if strides else ""}
            tops = Constant <value_ints: ints = @top> ()
            absent = Constant <value_float: float = -1.0> ()
            smallest = Constant <value_float: float = @min_size> ()
            axis2 = Constant <value_ints: ints = [2]> ()
            four = Constant <value_ints: ints = [1, 1, 4]> ()
            row_shape = Constant <value_ints: ints = [0, -1, 4]> ()
            begin_0 = Constant <value_int: int = 0> ()
            {selected}
            top_scores = Concat <axis = 1> ({all_levels("best")})
            top_deltas = Concat <axis = 1> ({all_levels("taken")})
            top_places = Concat <axis = 1> ({all_levels("place")})
            top_priors = Gather <axis = 0> ({"all_priors" if strides else "priors"}, top_places)
            sizes = Unsqueeze (image_sizes, one_v)
            {_decode("top_priors", "top_deltas", "sizes", "boxes")}
            box_low = Slice (boxes, zero_v, two_v, last)
            box_high = Slice (boxes, two_v, four_v, last)
            extent = Sub (box_high, box_low)
            width = Gather <axis = -1> (extent, zero)
            height = Gather <axis = -1> (extent, one)
            wide = Greater (width, smallest)
            tall = Greater (height, smallest)
            large = And (wide, tall)
            scores = Where (large, top_scores, absent)
        }}
        """,
        opset,
    )


def _moved_priors(num_levels: int) -> str:
    """Compute ``all_priors``, level after level, in a level by y, x and anchor: ``patches.anchor_generator``'s sums."""
    parts = "\n".join(_moved_level(level) for level in range(num_levels))
    moved = ", ".join(f"m{level}_priors" for level in range(num_levels))
    return f"""
            step = Constant <value_floats: floats = @strides> ()
            m_levels = Constant <value_ints: ints = [{num_levels}, -1, 4]> ()
            m_base = Reshape (priors, m_levels)
            m_rows = Constant <value_ints: ints = [-1, 4]> ()
            m_column = Constant <value_ints: ints = [-1, 1, 1, 1]> ()
            m_row = Constant <value_ints: ints = [1, -1, 1, 1]> ()
            {parts}
            all_priors = Concat <axis = 0> ({moved})"""


def _moved_level(level: int) -> str:
    return f"""
            m{level}_shape = Shape (logits_{level})
            m{level}_two = Constant <value_int: int = 2> ()
            m{level}_three = Constant <value_int: int = 3> ()
            m{level}_height = Gather <axis = 0> (m{level}_shape, m{level}_two)
            m{level}_width = Gather <axis = 0> (m{level}_shape, m{level}_three)
            m{level}_number = Constant <value_int: int = {level}> ()
            m{level}_at_x = Constant <value_int: int = {2 * level}> ()
            m{level}_at_y = Constant <value_int: int = {2 * level + 1}> ()
            m{level}_step_x = Gather <axis = 0> (step, m{level}_at_x)
            m{level}_step_y = Gather <axis = 0> (step, m{level}_at_y)
            m{level}_columns = Range (zero, m{level}_width, one)
            m{level}_rows = Range (zero, m{level}_height, one)
            m{level}_columns_f = Cast <to = 1> (m{level}_columns)
            m{level}_rows_f = Cast <to = 1> (m{level}_rows)
            m{level}_x = Mul (m{level}_columns_f, m{level}_step_x)
            m{level}_y = Mul (m{level}_rows_f, m{level}_step_y)
            m{level}_x_row = Reshape (m{level}_x, m_row)
            m{level}_y_column = Reshape (m{level}_y, m_column)
            m{level}_no_x = Mul (m{level}_x_row, origin)
            m{level}_no_y = Mul (m{level}_y_column, origin)
            m{level}_xs = Add (m{level}_x_row, m{level}_no_y)
            m{level}_ys = Add (m{level}_no_x, m{level}_y_column)
            m{level}_shift = Concat <axis = -1> (m{level}_xs, m{level}_ys, m{level}_xs, m{level}_ys)
            m{level}_own = Gather <axis = 0> (m_base, m{level}_number)
            m{level}_moved = Add (m{level}_shift, m{level}_own)
            m{level}_priors = Reshape (m{level}_moved, m_rows)"""


def _level(level: int) -> str:
    """Select one level's best: ``best_l``, ``taken_l`` (their deltas) and ``place_l`` among all levels' anchors."""
    return f"""
            l{level}_from = Constant <value_ints: ints = [{level}]> ()
            l{level}_to = Constant <value_ints: ints = [{level + 1}]> ()
            l{level}_k = Slice (tops, l{level}_from, l{level}_to)
            l{level}_logits = Transpose <perm = [0, 2, 3, 1]> (logits_{level})
            l{level}_row = Flatten <axis = 1> (l{level}_logits)
            l{level}_scores = Sigmoid (l{level}_row)
            l{level}_batch = Shape <start = 0, end = 1> (l{level}_scores)
            l{level}_num = Shape <start = 1, end = 2> (l{level}_scores)
            l{level}_pad_shape = Concat <axis = 0> (l{level}_batch, l{level}_k)
            l{level}_pad = Expand (absent, l{level}_pad_shape)
            l{level}_padded = Concat <axis = 1> (l{level}_scores, l{level}_pad)
            best_{level}, l{level}_found = TopK <axis = 1, largest = 1, sorted = 1> (l{level}_padded, l{level}_k)
            l{level}_last = Sub (l{level}_num, one_v)
            l{level}_index = Min (l{level}_found, l{level}_last)
            l{level}_map = Transpose <perm = [0, 2, 3, 1]> (deltas_{level})
            l{level}_rows = Reshape (l{level}_map, row_shape)
            l{level}_column = Unsqueeze (l{level}_index, axis2)
            l{level}_columns = Expand (l{level}_column, four)
            taken_{level} = GatherElements <axis = 1> (l{level}_rows, l{level}_columns)
            place_{level} = Add (l{level}_index, begin_{level})
            begin_{level + 1} = Add (begin_{level}, l{level}_num)"""


def decode_detections_function(opset: int) -> onnx.FunctionProto:
    """Return the body of ``DecodeDetections``: every class's probability and box of every proposal."""
    return parse_body(
        f"""
        DecodeDetections <means, stds, max_ratio, clip> (logits, deltas, proposals, count, image_sizes)
            => (boxes, scores)
        {{
            {_CONSTANTS}
            absent = Constant <value_float: float = -1.0> ()
            axis2 = Constant <value_ints: ints = [2]> ()
            sizes_axes = Constant <value_ints: ints = [1, 2]> ()
            all_but_last = Constant <value_ints: ints = [-1]> ()
            split = Constant <value_ints: ints = [0, 0, -1, 4]> ()
            flat_boxes = Constant <value_ints: ints = [0, -1, 4]> ()

            probabilities = Softmax <axis = -1> (logits)
            foreground = Slice (probabilities, zero_v, all_but_last, last)
            num_rows_v = Shape <start = 1, end = 2> (logits)
            num_rows = Squeeze (num_rows_v, zero_v)
            rows = Range (zero, num_rows, one)
            counts = Cast <to = 7> (count)
            counts_column = Unsqueeze (counts, one_v)
            is_real = Less (rows, counts_column)
            is_real_column = Unsqueeze (is_real, axis2)
            kept = Where (is_real_column, foreground, absent)
            scores = Flatten <axis = 1> (kept)

            class_deltas = Reshape (deltas, split)
            priors = Unsqueeze (proposals, axis2)
            sizes = Unsqueeze (image_sizes, sizes_axes)
            {_decode("priors", "class_deltas", "sizes", "class_boxes")}
            num_classes = Shape <start = 2, end = 3> (foreground)
            expanded = Concat <axis = 0> (one_v, one_v, num_classes, one_v)
            every_class = Expand (class_boxes, expanded)
            boxes = Reshape (every_class, flat_boxes)
        }}
        """,
        opset,
    )


_CONSTANTS = f"""
            zero = Constant <value_int: int = 0> ()
            one = Constant <value_int: int = 1> ()
            zero_v = Constant <value_ints: ints = [0]> ()
            one_v = Constant <value_ints: ints = [1]> ()
            two_v = Constant <value_ints: ints = [2]> ()
            four_v = Constant <value_ints: ints = [4]> ()
            last = Constant <value_ints: ints = [-1]> ()
            mean = Constant <value_floats: floats = @means> ()
            std = Constant <value_floats: floats = @stds> ()
            ratio = Constant <value_float: float = @max_ratio> ()
            half = Constant <value_float: float = 0.5> ()
            origin = Constant <value_float: float = 0.0> ()
            unbounded = Constant <value_float: float = {_LARGEST}> ()
            clip_int = Constant <value_int: int = @clip> ()
            width_height = Constant <value_ints: ints = [1, 0, 1, 0]> ()"""


def _decode(priors: str, deltas: str, sizes: str, boxes: str) -> str:
    """Apply (..., 4) deltas to (..., 4) priors and clip to sizes (..., 2) where ``clip``: ``patches``' decode."""
    return f"""
            d_scaled = Mul ({deltas}, std)
            d_deltas = Add (d_scaled, mean)
            d_low = Slice ({priors}, zero_v, two_v, last)
            d_high = Slice ({priors}, two_v, four_v, last)
            d_sum = Add (d_low, d_high)
            d_center = Mul (d_sum, half)
            d_size = Sub (d_high, d_low)
            d_move = Slice (d_deltas, zero_v, two_v, last)
            d_grow = Slice (d_deltas, two_v, four_v, last)
            d_shift = Mul (d_size, d_move)
            least_ratio = Neg (ratio)
            d_scale = Clip (d_grow, least_ratio, ratio)
            d_factor = Exp (d_scale)
            d_moved = Add (d_center, d_shift)
            d_grown = Mul (d_size, d_factor)
            d_half = Mul (d_grown, half)
            d_from = Sub (d_moved, d_half)
            d_to = Add (d_moved, d_half)
            d_boxes = Concat <axis = -1> (d_from, d_to)
            clips = Cast <to = 9> (clip_int)
            d_limits = Gather <axis = -1> ({sizes}, width_height)
            d_upper = Where (clips, d_limits, unbounded)
            bounded = Neg (unbounded)
            d_lower = Where (clips, origin, bounded)
            d_above = Max (d_boxes, d_lower)
            {boxes} = Min (d_above, d_upper)"""
