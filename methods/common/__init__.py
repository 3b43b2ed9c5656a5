"""Modules that several methods share; they import contracts only, never a method."""
