"""Mistakes of a user and failures of a machine, each said in one line."""

from collections.abc import Callable


class InputError(ValueError):
    """Bad input from the user: says what was expected, what was got, and what to do.

    Commands print the message as one line and exit with code 2. Where it is about a setting,
    `setting` is the name of that, with which the message begins.
    """

    setting: str | None = None

    @classmethod
    def of_setting(cls, name: str, problem: str) -> "InputError":
        """An error about a setting."""
        error = cls(f"{name}: {problem}")
        error.setting = name
        return error

    def renamed(self, rename: Callable[[str], str]) -> "InputError":
        """The same, with the name that the setting has where the user has given it."""
        if self.setting is None:
            return self
        return self.of_setting(rename(self.setting), str(self).removeprefix(f"{self.setting}: "))


class MachineError(RuntimeError):
    """A failure of the machine: says what was expected, what was got, and what to do.

    A disk is full or gone, a file on it is not as it was written, another process has died: the
    input is right, and the same command goes on later. Commands print the message as one line and
    exit with code 1.
    """
