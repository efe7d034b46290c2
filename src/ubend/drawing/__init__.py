"""Pictures for people: masks over pictures, grids of panels, curves of a training."""
