"""The LFR challenge: its limits, its feature file and submission, its score."""
