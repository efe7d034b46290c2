"""Errors, settings, automatic choices, devices, files, progress, random numbers, translation."""
