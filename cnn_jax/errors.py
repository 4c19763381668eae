"""The exception whose message commands show to users."""


class UserError(Exception):
    """An error that the user can fix; its message is one line that says what is wrong and what to do."""
