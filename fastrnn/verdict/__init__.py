"""What was measured on this machine, kept in files: the proof of the CUDA kernels, and tables of the CPU kernels."""
