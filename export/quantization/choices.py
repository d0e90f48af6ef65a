"""What may be chosen, by name; loads nothing, for the command line."""

ACTIVATIONS = ("int8", "uint8")
METHODS = ("minmax", "entropy", "percentile")
DEFAULT_METHOD = (
    "percentile"  # keeps more of the average precision than minmax: benchmarks/results/cpu_accuracy.json
)
DEFAULT_PERCENTILE = 99.99
