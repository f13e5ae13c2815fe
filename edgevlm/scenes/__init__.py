"""Synthetic images of shapes, drawings and printed words, and questions with known answers."""
