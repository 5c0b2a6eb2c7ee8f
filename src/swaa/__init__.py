"""Sliding window attention adaptation (SWAA) of pretrained full-attention language models."""

__version__ = "0.1.0"
