"""Turns pairs into training batches: label scan, store, splits, augmentation, sampling."""
