"""What masks hold: raw label values, the class table, and reading masks as class indices."""
