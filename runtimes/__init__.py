"""Runtimes of the vision graph and of the decoder. They know arrays and token ids, no manifest or prompt."""
