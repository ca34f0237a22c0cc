"""Kernels of the CPU's fused functions; `backend/fused.py` finds them by name.

Each has a plain array expression beside its use, which computes the same and which tests compare.
"""
