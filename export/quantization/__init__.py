"""ONNX -> ONNX in INT8, by onnxruntime's quantization library: explicit Q/DQ pairs. Needs neither PyTorch nor mmdet.

``layers`` what is quantized · ``placement`` where the pairs go · ``calibration`` the ranges of activations · ``cache``
them in a file · ``sensitivity`` which layers lose most · ``accuracy`` leave those out · ``api`` all of it.
"""
