"""The stages of `gpu.py`, a file each."""
