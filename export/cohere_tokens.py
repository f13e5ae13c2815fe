"""Tokens of Cohere's vision-language models that stand in turns and images."""

from __future__ import annotations

from collections.abc import Mapping

from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import ExportError

CONTROL_TOKENS = (
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|START_OF_IMG|>",
    "<|IMG_PATCH|>",
    "<|IMG_LINE_BREAK|>",
    "<|END_OF_IMG|>",
)


def mark_control_tokens(tokenizer: TokenizersBackend) -> None:
    """Make the tokens of turns and images special.

    In Cohere's tokenizers some are not. A text of a user would become them, as it does in transformers.
    """
    vocabulary = tokenizer.get_vocab()
    found = [token for token in CONTROL_TOKENS if token in vocabulary]
    tokenizer.add_tokens(found, special_tokens=True)


def check_named_tokens(tokenizer: TokenizersBackend, expected: Mapping[str, str]) -> None:
    """Check the tokens that transformers' processor asks the tokenizer for.

    Args:
        expected: text of each token, by the name of the setting.

    Raises:
        ExportError: a token has another text.
    """
    for name, text in expected.items():
        found = getattr(tokenizer, name, None)
        if found != text:
            raise ExportError(
                f"{name} in tokenizer_config.json is {found!r}; edgevlm exports this family with {text!r}"
            )
