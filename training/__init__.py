"""How edgevlm-nano is made: scenes, questions, tokenizer, trainer and evaluation.

Nothing here is needed to run the model, and nothing in the runtime imports it.
"""
