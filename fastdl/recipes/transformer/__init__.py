"""Transformer on pairs of sequences: spelling to pronunciation."""
