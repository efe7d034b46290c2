"""Masks: where they come from, what they say of each pixel, and what that means."""
