"""Users of the host, as people name them."""

from vmm.errors import ConfigError


def account(user: str) -> tuple[int, int]:
    """Return the user and group id of a user, given by name or number.

    Raises:
        ConfigError: there is no such user.
    """
    import pwd

    try:
        account = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        if user.isdecimal():
            return int(user), int(user)
        raise ConfigError(f"--user {user}: there is no such user") from None
    return account.pw_uid, account.pw_gid
