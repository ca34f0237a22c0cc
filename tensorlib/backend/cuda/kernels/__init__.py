"""The GPU's kernels, CUDA C++ in `*.cu`, and beside them the functions on arrays that use them."""
