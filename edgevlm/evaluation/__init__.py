"""Measures what a bundle sees: scenes, questions about them, judges, and a report."""
