"""Tokens that mean the same in every vocabulary of the Transformer."""

PADDING, BEGIN, END = range(3)
FIRST = 3
"""The first token that is a symbol of the data."""
