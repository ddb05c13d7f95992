"""What a user can get wrong, said in one line."""


class InputError(ValueError):
    """Bad input from the user: says what was expected, what was got, and what to do.

    Commands print the message as one line and exit with code 2.
    """
