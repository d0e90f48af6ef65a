"""The ground floor of everything on a GPU: the binding, and memory that grows.

``binding`` cuda-python or pycuda behind one interface · ``memory`` device and page-locked memory.
"""
