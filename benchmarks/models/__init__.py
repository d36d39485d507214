"""Cases and providers, as data; `benchmarks/run.py` times them."""
