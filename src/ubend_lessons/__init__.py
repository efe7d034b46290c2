"""Lessons of a course on U-Nets, to run, look at and change. Imports ubend, which never imports this package."""
