"""What check_cuda_loaded.py asserts of `_cuda`: a file for each family, with OPERATORS and CHECKS."""
