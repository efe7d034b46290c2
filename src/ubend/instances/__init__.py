"""Objects in a mask: separated, measured, exported, compared with true objects."""
