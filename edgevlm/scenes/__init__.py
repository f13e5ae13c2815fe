"""Synthetic images, and questions about them with known answers."""
