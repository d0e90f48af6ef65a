"""Pixels -> detections with nothing but pixels and results crossing the bus.

``kernels`` the C functions of the plugin library · ``memory`` device and page-locked memory that grows ·
``slot`` one batch's memory, and its way through the device · ``runner`` several slots over one engine.
"""
