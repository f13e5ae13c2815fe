"""Every error that edgevlm raises on purpose.

::

    EdgeVLMError
    ├── InputError            what the caller passed cannot be used (also a ValueError)
    │   ├── ImageError        a picture that is missing, unreadable, empty or too large
    │   ├── PromptError       messages that the model's template cannot express
    │   └── ContextError      prompt plus answer longer than the context
    ├── BundleError           a bundle that is missing, incomplete, altered or of an unknown version
    ├── BackendError          a vision graph, decoder or device that fails
    │   ├── LoadError         it cannot be loaded
    │   ├── InferenceError    it was loaded and failed in a computation
    │   └── ClosedError       it was closed, or belongs to a parent process
    ├── BusyError             a model that is held by a stream which nobody reads
    ├── MissingDependencyError  an extra that is not installed (also an ImportError)
    └── ExportError           a checkpoint that cannot become a bundle
        └── DriftError        the exported bundle does not answer as the checkpoint does

Messages say what is wrong, with the value, and what to do about it.
"""


class EdgeVLMError(Exception):
    """Base of every error raised on purpose by edgevlm."""


class InputError(EdgeVLMError, ValueError):
    """What the caller passed cannot be used."""


class ImageError(InputError):
    """A picture that is missing, unreadable, empty or too large."""


class PromptError(InputError):
    """Messages that the model's chat template cannot express."""


class ContextError(InputError):
    """Prompt plus answer are longer than the decoder's context."""


class BundleError(EdgeVLMError):
    """A bundle that is missing, incomplete, altered or of an unknown schema version."""


class BackendError(EdgeVLMError):
    """A vision graph, a decoder or a device failed."""


class LoadError(BackendError):
    """A file, a library or a device cannot be loaded."""


class InferenceError(BackendError):
    """A loaded vision graph or decoder failed in a computation, or computed NaN."""


class ClosedError(BackendError):
    """The model is closed, or this process was forked from the one that loaded it."""


class BusyError(EdgeVLMError):
    """The model is held by a stream that nobody reads, or that nobody can read while this request waits."""


class MissingDependencyError(EdgeVLMError, ImportError):
    """An optional dependency that is not installed; the message has the command that installs it."""


class ExportError(EdgeVLMError):
    """A checkpoint that cannot become a bundle."""


class DriftError(ExportError):
    """The exported bundle does not answer as the checkpoint does."""
