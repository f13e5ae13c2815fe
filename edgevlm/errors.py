"""The errors that edgevlm raises on purpose.

::

    EdgeVLMError
    ├── InputError            an argument or a request that cannot be used (also a ValueError)
    │   ├── ImageError        an image that is missing, unreadable, empty or too large
    │   ├── PromptError       messages that the model's template cannot express
    │   ├── ContextError      prompt plus answer longer than the context
    │   └── ChatFileError     a saved conversation that cannot be written, read or continued
    ├── BundleError           a bundle that is missing, incomplete, altered or of an unknown version
    ├── BackendError          a vision graph, a decoder or a device that fails
    │   ├── LoadError         a file, a library or a device that cannot be loaded
    │   ├── InferenceError    a computation that failed, or returned NaN
    │   └── ClosedError       a model that was closed, or that belongs to the parent process
    ├── AnswerError           an answer that is no value of the type that was asked for
    │   └── IncompleteAnswerError  an answer that a limit ended before it was complete
    ├── BusyError             a model in use by a stream that nobody reads
    ├── CancelledError        an answer that was cancelled before its end
    │   └── DeadlineError     no time was left for the first token (also a TimeoutError)
    ├── SourceError           a source of frames that cannot be opened or read
    │   └── StalledError      a source that gave no frame in time (also a TimeoutError)
    ├── MissingDependencyError  an extra that is not installed (also an ImportError)
    └── ExportError           a checkpoint that cannot become a bundle
        └── DriftError        a bundle that does not answer as its checkpoint does

Messages say what is wrong, with the value, and what to do about it.
"""

from __future__ import annotations


class EdgeVLMError(Exception):
    """Base class of the errors that edgevlm raises on purpose."""


class InputError(EdgeVLMError, ValueError):
    """An argument or a request that cannot be used."""


class ImageError(InputError):
    """An image that is missing, unreadable, empty or too large."""


class PromptError(InputError):
    """Messages that the model's chat template cannot express."""


class ContextError(InputError):
    """A prompt that, together with its answer, is longer than the decoder's context."""


class ChatFileError(InputError):
    """A saved conversation that cannot be written, is damaged, or belongs to another bundle."""


class BundleError(EdgeVLMError):
    """A bundle that is missing, incomplete, altered or of an unknown schema version."""


class BackendError(EdgeVLMError):
    """A vision graph, a decoder or a device that fails."""


class LoadError(BackendError):
    """A file, a library or a device that cannot be loaded."""


class InferenceError(BackendError):
    """A computation of a loaded vision graph or decoder that failed, or returned NaN."""


class ClosedError(BackendError):
    """A model that was closed, or that was loaded before this process was forked."""


class AnswerError(EdgeVLMError):
    """An answer that is no value of the type that was asked for.

    Args:
        message: what is wrong, and what to do.
        text: the text of the answer.
        token_ids: its tokens, without the end token.
    """

    def __init__(self, message: str, text: str = "", token_ids: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.text = text
        self.token_ids = token_ids

    def __reduce__(self) -> tuple[type[AnswerError], tuple[str, str, tuple[int, ...]]]:
        """Keep text and tokens in copies and in other processes."""
        return type(self), (str(self), self.text, self.token_ids)


class IncompleteAnswerError(AnswerError):
    """An answer that a limit, such as ``max_tokens``, ended before it was complete."""


class BusyError(EdgeVLMError):
    """A model in use by a stream that nobody reads, or that nobody can read while this request waits."""


class CancelledError(EdgeVLMError):
    """An answer that was cancelled before its end."""


class DeadlineError(CancelledError, TimeoutError):
    """A request whose time (``within``) was over before the first token of its answer."""


class SourceError(EdgeVLMError):
    """A camera, a video, a folder or a recording that cannot be opened or read."""


class StalledError(SourceError, TimeoutError):
    """A source that gave no frame in time (``max_age``). Do not act on an older one."""


class MissingDependencyError(EdgeVLMError, ImportError):
    """An optional dependency that is not installed; the message has the command to install it."""


class ExportError(EdgeVLMError):
    """A checkpoint that cannot become a bundle."""


class DriftError(ExportError):
    """A bundle that does not answer as its checkpoint does."""
