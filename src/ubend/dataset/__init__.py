"""From pairs to training batches: label scan, store, splits, augmentation, sampling."""
