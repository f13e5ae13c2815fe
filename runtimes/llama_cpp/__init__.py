"""Decoders in llama.cpp."""
