"""Reads folders as pairs of image and mask: layouts, annotation formats, groups, given splits."""
