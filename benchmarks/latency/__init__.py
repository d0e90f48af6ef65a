"""How fast the whole way is, next to PyTorch: ``python -m benchmarks.latency``."""
