"""The errors a user may see. Each message is one line: the setting or file, its value, and the way out."""


class AnimaError(Exception):
    """Base of every error that is meant for the user. The command line prints it without a traceback."""

    exit_status = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).splitlines()))  # a key or a file's name may hold line breaks


class SettingError(AnimaError):
    """A setting that is refused, before anything is loaded."""

    exit_status = 2


class FileError(AnimaError):
    """A file or folder that cannot be used: missing, truncated, of the wrong kind, or not writable."""

    exit_status = 2


class RunError(AnimaError):
    """A failure in the run itself: non-finite loss, an adapter that does not move, out of memory."""


class Interrupted(AnimaError):
    """The user stopped the run; its state was saved first."""

    exit_status = 130


def is_out_of_memory(error: RuntimeError) -> bool:
    """torch's own error, or what drivers, cuBLAS and MPS say in a plain RuntimeError when they are the ones to fail."""
    text = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or "out of memory" in text or "alloc_failed" in text
