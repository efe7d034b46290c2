"""The networks and the model file."""
