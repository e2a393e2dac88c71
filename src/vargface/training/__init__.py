"""Training: a recipe checked, generation after generation of the same loop, and the folder that a run leaves."""
