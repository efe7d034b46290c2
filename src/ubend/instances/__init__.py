"""True objects, and the scores of objects that were found."""
