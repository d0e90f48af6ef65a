"""What may be chosen, by name; loads nothing, for the command line."""

ACTIVATIONS = ("int8", "uint8")
METHODS = ("average", "minmax", "entropy", "percentile")
DEFAULT_METHOD = "average"  # what it keeps of the average precision: benchmarks/results/cpu_accuracy.json
DEFAULT_PERCENTILE = 99.99
