"""The GPU kernels that ubend.accel.fused calls; reference.py defines the same names in plain torch."""

from ubend.accel.concat import HEAD_CHANNELS, add_bias, copy_and_sum, differentiate_head, head
from ubend.accel.norm import apply, apply_and_pool, measure_statistics
from ubend.accel.norm_gradient import differentiate

ALIGNED = 8  # input channels of convolutions are padded to a multiple of it; else cuDNN pads them in each call
