"""Verification, FLOPs, tables, curves and pictures: numpy in, numbers and pictures out."""
