"""`edgevlm serve`: a model behind an OpenAI-compatible HTTP interface.

Data flows one way: `protocol` (what clients write) → `pictures` (their bytes) → `worker` (one thread that
owns the model, first come first served) → `protocol` (what clients read); `app` joins them.
"""
