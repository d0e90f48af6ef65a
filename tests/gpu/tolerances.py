"""How far kernels and plugins may be from the oracles. Plain numbers: TensorRT's tests have no torch."""

# Relative to the largest feature: float32 rounding of positions and of sums of up to 512 x 512 samples.
FLOAT_TOLERANCE = 1e-5
# float16 results have 11 bits: half a unit in the last place is 5e-4.
HALF_TOLERANCE = 2e-3
# A probability this close to the threshold: two orders of the same float32 arithmetic may differ.
NEAR_THRESHOLD = 1e-5
# float32 against float64. Probabilities: the roundings of exp, of a sum and of a quotient.
PROBABILITY_TOLERANCE = 2e-6
# Boxes in px: two units of exp on half a side of 2000 px, of which the image shows a part.
BOX_TOLERANCE = {"rtol": 1e-6, "atol": 5e-4}
