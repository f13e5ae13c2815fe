"""A chat about pictures in the browser: one page, served on this machine only."""
