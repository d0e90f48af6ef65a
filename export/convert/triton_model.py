"""The model for Triton's Python backend: image files in, detections in their own pixels out.

Input ``image``, (B, 1): bytes of image files, read as the model's test pipeline reads them. Outputs, padded with zeros
to the image with most detections of a request: ``num_dets`` (B, 1), ``image_size`` (B, 2) height and width, ``boxes``
(B, n, 4) px, ``scores`` (B, n), ``labels`` (B, n), and of a model with masks ``rle`` (B, n), the ``counts`` of COCO's
run lengths. Requests that Triton has gathered run together; an image that cannot be used fails its own request alone.

Parameters of ``config.pbtxt``: ``model``, a file beside this one; ``backend``, of ``runtime.Detector``; ``min_score``;
``threads``, of a CPU.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from runtime import Detector
from runtime.host.preprocess import check_fits
from runtime.images import decode_image


class TritonPythonModel:
    """What Triton makes an instance of."""

    def initialize(self, args):
        """Open the model."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        options = {"batch_size": max(1, int(config["max_batch_size"]))}
        if args["model_instance_kind"] == "GPU":
            options["device_index"] = int(args["model_instance_device_id"])
        if "threads" in parameters:
            options["threads"] = int(parameters["threads"])
        self.detector = Detector(folder / parameters["model"], parameters.get("backend", "auto"), **options)
        self.min_score = float(parameters.get("min_score", 0))

    def execute(self, requests):
        """Return a response for each request."""
        decoded = [self._decoded(request) for request in requests]
        images = [image for found in decoded if isinstance(found, list) for image in found]
        try:
            detections = iter(self.detector(images))
        except (RuntimeError, ValueError) as error:
            detections, failure = iter(()), error
            decoded = [found if isinstance(found, Exception) else failure for found in decoded]
        return [
            _failed(found)
            if isinstance(found, Exception)
            else self._answer([next(detections) for _ in found])
            for found in decoded
        ]

    def finalize(self):
        """Release the model."""
        self.detector.close()

    def _decoded(self, request):
        """Return a request's images, or why it has none."""
        metadata = self.detector.metadata
        files = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().ravel()
        images = []
        for index, data in enumerate(files):
            name = f"image {index}"
            try:
                images.append(decode_image(data, metadata.load, name=name))
                check_fits(images[-1], metadata, name)
            except ValueError as error:
                return error
        return images

    def _answer(self, found):
        found = [detections.filter(self.min_score) for detections in found]
        arrays = {
            "num_dets": np.array([[len(d)] for d in found], np.int32),
            "image_size": np.array([d.image_size for d in found], np.int32),
            "boxes": _padded([d.boxes for d in found]),
            "scores": _padded([d.scores for d in found]),
            "labels": _padded([d.labels for d in found]),
        }
        if self.detector.metadata.masks != "none":
            counts = [np.array([rle["counts"].encode() for rle in d.rle()], object) for d in found]
            arrays["rle"] = _padded(counts, b"")
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])


def _padded(rows, value=0):
    """Return the arrays as one, filled up to the longest."""
    shape = (len(rows), max(map(len, rows)), *rows[0].shape[1:])
    filled = np.full(shape, value, rows[0].dtype)
    for row, target in zip(rows, filled):
        target[: len(row)] = row
    return filled


def _failed(error):
    code = (
        pb_utils.TritonError.INVALID_ARG if isinstance(error, ValueError) else pb_utils.TritonError.INTERNAL
    )
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
