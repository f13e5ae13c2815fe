"""A chat about pictures in the browser."""
