"""The one exception that users are meant to see."""


class UserError(Exception):
    """Something the user can put right: one line that says what is wrong and what to do about it."""
