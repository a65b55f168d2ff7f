"""Assignments, and the grades of those who solved them."""
