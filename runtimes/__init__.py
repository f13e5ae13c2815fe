"""What runs the two halves of a bundle: arrays and token ids only, no manifest, no prompts, no pictures."""
