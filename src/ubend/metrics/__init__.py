"""Scores of predicted masks; each is a formula of counts."""
