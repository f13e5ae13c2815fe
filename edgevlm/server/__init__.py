"""`edgevlm serve`: an HTTP server for one model, compatible with the OpenAI API.

Data goes one way: `access` (allowed hosts and origins) → `requests` and `messages` (the JSON of clients,
checked by `validation`) → `images` (the files of images) → `worker` (one thread that owns the model, first
come, first served) → `answers` and `responses` (the JSON for clients). `app` joins these modules, and
`http_server` listens.
"""
