"""ONNX -> TensorRT engine -> arrays. Nothing outside this package touches TensorRT; CUDA, only ``runtime.device``.

``config`` what an engine is asked to be · ``graph`` the ONNX as TensorRT gets it · ``profiles`` its shapes ·
``builder`` parse, constrain, build · ``files`` engine and sidecar on disk, rebuilt when stale · ``session`` runs an
engine, ``buffers`` its inputs and outputs · ``inspection`` what is in it. ``compat`` holds what differs between
releases, ``cuda`` the CUDA binding, ``plugins`` the plugin library, ``library`` the loaded TensorRT with its log.
"""
