# shellcheck shell=bash
# What the shell scripts beside this file begin with; they source it. It sets $top, the clone's folder, and answers
# --help, given first, with the script's own header.

# shellcheck disable=SC2034 # for those who source this
top=$(dirname "$(dirname "$(readlink -f "$0")")")

# The header of the script that runs: its first comment, without the marks.
print_header() { sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"; }

# Say what is wrong with the command line, and how it is to be; ends the script.
wrong_usage() {
  {
    [ $# -eq 0 ] || printf '%s: %s\n' "${0##*/}" "$*"
    print_header | sed -n '/^usage: /,/^$/p'
  } >&2
  exit 2
}

# End where this user cannot write into the clone, as all that builds something must.
need_writable_clone() {
  if [ ! -w "$top" ] || { [ -e "$top/build" ] && [ ! -w "$top/build" ]; }; then
    printf "%s: %s is read-only for you: work in a clone of your own (git clone '%s' vmm)\n" "${0##*/}" "$top" "$top" >&2
    exit 4
  fi
}

python_is_usable() { "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Print the first in PATH that is new enough, by whatever name; fails where there is none.
find_python() {
  local name
  for name in python3 python3.{14,13,12,11} /usr/bin/python3; do
    if python_is_usable "$name"; then
      echo "$name"
      return
    fi
  done
  return 1
}

case ${1-} in
  -h | --help)
    print_header
    exit
    ;;
esac
