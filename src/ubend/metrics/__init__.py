"""Scores of predicted masks: counts first, formulas second."""
