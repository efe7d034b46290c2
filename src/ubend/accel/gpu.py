"""The kernels that ubend.accel.fused calls, for NVIDIA GPUs; reference.py has the same names in plain torch."""

from ubend.accel.join import HEAD_CHANNELS, add_bias, copy_and_sum, differentiate_head, head
from ubend.accel.norm import apply, apply_and_pool, measure_statistics
from ubend.accel.norm_gradient import differentiate

ALIGNED = 8  # channels of a convolution's input that matrix units take without padding it themselves
