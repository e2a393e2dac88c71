"""Several processes, here or on other machines, that are started and ended together."""
