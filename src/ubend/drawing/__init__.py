"""Images for people: masks over images, grids of panels, curves of a training."""
