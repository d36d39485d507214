"""Measurements of fastdl against everything else that computes the same."""
