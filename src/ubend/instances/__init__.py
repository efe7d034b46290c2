"""From classes to objects: which pixels belong to the same one."""
