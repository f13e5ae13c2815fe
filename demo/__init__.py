"""A page in the browser to talk about pictures and to look inside; served on this machine only."""
