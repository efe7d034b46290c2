"""Folders to pairs of image and mask: layouts, annotation formats, groups, stated splits."""
