"""Images and results on the CPU.

``preprocess`` images -> the network's inputs · ``postprocess`` its outputs -> detections · ``runner`` both around a
model that takes arrays.
"""
