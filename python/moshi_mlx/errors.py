"""What can go wrong: one exception type per cause.

Every message says what was found, what was expected, and what to do next; command lines print it without a traceback
and exit with `exit_code`.
"""


class MoshiError(Exception):
    """Anything this package raises on purpose."""

    exit_code = 1


class InputError(MoshiError, ValueError):
    """An argument has the wrong shape, type or range."""

    exit_code = 2


class CheckpointError(MoshiError):
    """A model's files are missing, damaged, or don't hold the model that they should."""

    exit_code = 3


class ConfigError(CheckpointError):
    """A `config.json` is unreadable or describes a model that this package can't build."""


class DownloadError(MoshiError):
    """A model can't be fetched from the hub and isn't in the cache."""

    exit_code = 4


class AudioFileError(MoshiError):
    """A sound file is missing, empty, or in no known format."""

    exit_code = 5


class StorageError(MoshiError):
    """A result can't be written: disk full, no permission, no such folder."""

    exit_code = 6


class DeviceError(MoshiError):
    """A microphone or speaker is missing, busy or refused."""

    exit_code = 7
