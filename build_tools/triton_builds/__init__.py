"""What compile_triton.py compiles: a file for each family, with its cases()."""
