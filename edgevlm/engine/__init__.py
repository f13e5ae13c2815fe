"""Answers requests: prefill, caches, sampling and streams over both runtimes."""
