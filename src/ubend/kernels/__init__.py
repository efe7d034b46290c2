"""One pass over memory where torch's operators take several; Triton, for NVIDIA GPUs."""
