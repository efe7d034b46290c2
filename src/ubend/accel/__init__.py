"""Fast paths for NVIDIA GPUs: kernels that need one pass over memory where torch needs several."""
