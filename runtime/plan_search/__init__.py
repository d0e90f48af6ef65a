"""The smallest precision plan with which the detections stay those of FP32.

``emulation`` FP16 on a CPU · ``agreement`` how far detections are the same · ``measure`` what each tensor loses ·
``scopes`` names of layers · ``search`` the search itself · ``report`` what is printed and written.
"""
