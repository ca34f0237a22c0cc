"""What the GPU needs beyond CuPy: own kernels, and the way they are compiled and launched."""
