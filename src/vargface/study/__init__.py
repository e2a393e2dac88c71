"""Studies: a recipe trained in several forms with several seeds, and what differs."""
