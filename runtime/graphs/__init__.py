"""Every reading of ONNX, and every fact about an operator.

``load`` files · ``view`` a graph's tensors, their types and readers · ``operators`` the table of facts · ``session`` a
model in onnxruntime. Importing these loads neither onnx nor onnxruntime; the functions that need them do.
"""
