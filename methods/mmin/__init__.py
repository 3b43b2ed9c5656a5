"""MMIN (ACL 2021)."""
