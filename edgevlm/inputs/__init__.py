"""Images and messages to tiles and prompt items."""
