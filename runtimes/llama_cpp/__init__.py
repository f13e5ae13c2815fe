"""The decoder in llama.cpp."""
