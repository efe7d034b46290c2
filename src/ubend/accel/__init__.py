"""Fast paths for NVIDIA GPUs: kernels that need one pass over memory where torch needs several.

accelerate.py   the way in: decides which of the following is used for a network, a loss or the augmentation
captured.py     training: a whole step as one CUDA graph
fused.py        training of the plain U-Net: its forward and backward pass; gradients of weights on a second stream
layers.py       training of other networks: batch norm with its activation, and the decoder's concatenation
folded.py       prediction with a U-Net: batch norm folded into the convolutions; stem.py is its first layer
loss.py, augment.py                        the losses and the augmentation as kernels
norm.py, norm_gradient.py, concat.py         the kernels of fused.py and layers.py; gpu.py names them together
reference.py                               the same functions in plain torch, for tests without a GPU
gate.py, warmup.py                         whether kernels can run here; loading their libraries in the background
"""
