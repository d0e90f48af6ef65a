"""Models held against each other and against annotations.

``sources`` what has detections for images: a model, or a recording · ``recording``, ``npz`` the file of one ·
``difference`` of two results · ``annotations``, ``average_precision`` COCO · ``bisection``, ``row_pairs``,
``layer_table`` the first tensor at which two networks part.
"""
