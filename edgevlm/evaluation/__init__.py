"""Evaluation of any model on questions with known answers: items, metrics, runs and reports."""
