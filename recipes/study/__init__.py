"""Studies: a recipe, and the cells in which it is varied."""
