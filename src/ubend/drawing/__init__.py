"""Drawings: overlays of masks, grids of images, training curves."""
