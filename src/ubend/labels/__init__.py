"""Label values, the class table, and reading masks as class indices."""
