"""One module, one experiment; `base` holds every key, its default and its meaning."""
