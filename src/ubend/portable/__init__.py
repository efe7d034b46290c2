"""What `ubend` and `ubend-runtime` share: reading images, sizes, tiles, masks and exported models, without torch.

Relative imports, NumPy, Pillow and the standard library only: the wheel of `ubend-runtime` has a copy of this folder.
"""
