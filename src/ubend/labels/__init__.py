"""Raw label values, the class table, and reading masks as class indices."""
