"""A folder as people bring it -> pairs of picture and mask; no pixels are decoded here."""
