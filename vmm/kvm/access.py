"""Why ``/dev/kvm`` does not open, and what to do about it."""

import errno
import os
import stat

_NUMBER = os.makedev(10, 232)
"""MISC_MAJOR and KVM_MINOR (<linux/major.h>, <linux/miscdevice.h>)."""

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


def cannot_open(path: str, error: OSError) -> str:
    """Return one line: why ``path`` did not open, and what to do about it."""
    another = None if error.errno == errno.EACCES else not_kvm(path)
    if another is not None:
        return another
    why = f"cannot open {path}: {error.strerror}"
    if error.errno == errno.ENOENT:
        return (
            f"{why}; load KVM with 'sudo modprobe {_kvm_module()}', and enable virtualization in the host's "
            "firmware set-up if that fails; in a container, pass --device=/dev/kvm"
        )
    if error.errno in {errno.ENXIO, errno.ENODEV}:
        return f"{why}; load KVM with 'sudo modprobe {_kvm_module()}'"
    if error.errno == errno.EACCES:
        return f"{why}{_permission_remedy(path)}"
    if error.errno == errno.EPERM:
        return f"{why}; the container or sandbox forbids the device: start it with --device=/dev/kvm"
    return f"{why}; check what {path} is"


def not_kvm(path: str) -> str | None:
    """Return one line, if there is something else in the place of KVM's device: what it is, and what to do about it."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        if not os.path.islink(path):  # noqa: PTH114
            return None
        what = f"a symbolic link to {os.readlink(path)}, where there is nothing"  # noqa: PTH115
    else:
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == _NUMBER:
            return None
        what = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            what += f", number {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    number = f"{os.major(_NUMBER)}:{os.minor(_NUMBER)}"
    remedy = "if it is a container's volume, give the container --device=/dev/kvm instead"
    if path == "/dev/kvm":
        remedy += f"; else remove it, and load KVM with 'sudo modprobe {_kvm_module()}'"
    return f"{path} is {what}, not KVM's device (a character device, {number}); {remedy}"


def _kvm_module() -> str:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as cpuinfo:  # noqa: PTH123  # pathlib costs start-up time
        return "kvm_amd" if "AuthenticAMD" in cpuinfo.read(4096) else "kvm_intel"


def _permission_remedy(path: str) -> str:
    import grp
    import pwd

    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return f"; a directory above {path} is closed to this user"
    if os.statvfs(path).f_flag & os.ST_NODEV:
        return "; the file system that it lies on was mounted with nodev: in a container, pass --device=/dev/kvm"
    if os.geteuid() == 0:
        return (
            " even for root; a security module (SELinux, AppArmor) or a user namespace forbids it: see the kernel log"
        )
    try:
        account = pwd.getpwuid(os.geteuid())
        user, primary_group = account.pw_name, account.pw_gid
    except KeyError:
        user, primary_group = None, os.getegid()
    try:
        entry = grp.getgrgid(status.st_gid)
        group, members = entry.gr_name, entry.gr_mem
    except KeyError:
        group, members = str(status.st_gid), []
    who = f"user {user} (uid {os.geteuid()})" if user else f"uid {os.geteuid()}"
    facts = f" for {who}: its group is {group}, its mode {status.st_mode & 0o7777:04o}"
    if user is None:
        return f"{facts}; it has no account to join a group: give this process one that may (a container: --group-add)"
    group_may = status.st_mode & 0o060 == 0o060 and status.st_gid != 0
    if group_may and (user in members or primary_group == status.st_gid):
        return f"{facts}; {user} has joined {group} after this session began: log out and in again"
    command = f"sudo usermod -aG {group if group_may else 'kvm'} {user}"
    if not group_may:
        command = f"sudo chgrp kvm {path} && sudo chmod 0660 {path} && {command}"
        if not _group_exists("kvm"):
            command = f"sudo groupadd --system kvm && {command}"
    return f"{facts}; run '{command}', then log out and in again"


def _group_exists(name: str) -> bool:
    import grp

    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True
