"""Floors, ceilings and plain competitors: what any method has to be compared with."""
