"""Triton kernels; `swaa.attention.triton` launches them. Importing this needs the package `triton`."""
