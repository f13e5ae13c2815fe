"""`edgevlm serve`: a model behind an OpenAI-compatible HTTP interface.

Data flows one way: `access` (who may ask) → `requests` and `messages` (what clients write, checked by
`validation`) → `pictures` (their bytes) → `worker` (one thread that owns the model, first come first served)
→ `answers` and `responses` (what clients read); `app` joins them, `http_server` listens.
"""
