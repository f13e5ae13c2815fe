"""edgevlm beside its peers, measured in one run; not installed."""
