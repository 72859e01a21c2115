# shellcheck shell=bash
# Commands side by side, each shown in one piece when it ends. Sourced, by scripts/test.
#
#   first NAME COMMAND ...       run it before all others, with its output as it comes; if it fails, end with its status
#   first NAME optional COMMAND  the same, but if it fails, go on
#   stage NAME COMMAND ...       start it as soon as a processor is free
#   shown_last NAME COMMAND ...  the same, but what it prints is shown after all others
#   finish                       wait for all, show what is left, name those that failed; ends the script
#
# A command may be a function. Each has a process group of its own, so that an interrupt ends all that it started.

set -o monitor

stage_logs=build/test
declare -A stage_running=() stage_began=() # name and $SECONDS, by process id
stage_last=                                # the name of the one that is shown last
stage_last_end=
stage_failed=()

# The subshell keeps errexit, which a command whose status is asked for would lose, and ends by itself, where a command
# in its place might end by a signal: bash forgets the status of such a job before anyone waits for it.
stage_start() {
  local name=$1
  shift
  (
    "$@"
    exit
  ) </dev/null &
  stage_running[$!]=$name
  stage_began[$!]=$SECONDS
}

stage_log() { printf '%s/%s.log' "$stage_logs" "${1//[^a-zA-Z0-9]/-}"; }

stage_show() { # NAME HOW-IT-ENDED
  printf '\n== %s: %s\n' "$1" "$2"
  cat "$(stage_log "$1")"
}

# Wait until one has ended.
stage_wait() {
  local pid name status=0 how=passed
  wait -n -p pid "${!stage_running[@]}" || status=$?
  name=${stage_running[$pid]}
  unset "stage_running[$pid]"
  if [ "$status" -ne 0 ]; then
    how="FAILED, status $status"
    stage_failed+=("$name")
  fi
  how+=" ($((SECONDS - stage_began[$pid])) s)"
  if [ "$name" = "$stage_last" ]; then
    stage_last_end=$how
  else
    stage_show "$name" "$how"
  fi
}

first() {
  local status=0
  printf '== %s\n' "$1"
  stage_start "$@"
  wait $! || status=$?
  unset "stage_running[$!]"
  if [ "$status" -ne 0 ]; then
    printf '\n== failed: %s\n' "$1"
    exit "$status"
  fi
}

# For what the checks can do without: run it, and only say so if it fails.
optional() { "$@" || printf 'going on without it\n'; }

# What this host lacks, which the command says and ends with 4, is no failure.
where_possible() {
  local status=0
  "$@" || status=$?
  [ "$status" -eq 4 ] || return "$status"
  printf 'skipped\n'
}

stage() {
  while [ "${#stage_running[@]}" -ge "$(nproc)" ]; do
    stage_wait
  done
  mkdir -p "$stage_logs"
  stage_start "$@" >"$(stage_log "$1")" 2>&1
}

shown_last() {
  stage_last=$1
  stage "$@"
}

finish() {
  local name
  while [ "${#stage_running[@]}" -gt 0 ]; do
    stage_wait
  done
  [ -z "$stage_last" ] || stage_show "$stage_last" "$stage_last_end; all stages together $SECONDS s"
  [ "${#stage_failed[@]}" -gt 0 ] || exit 0
  printf '\n== failed:'
  printf ' %s;' "${stage_failed[@]}"
  printf '\n'
  for name in "${stage_failed[@]}"; do # once more, where who sees only the end of a long output finds them
    grep -hE '^([a-z0-9-]+: )?(FAILED|ERROR) ' "$(stage_log "$name")" || true
  done
  exit 1
}

# Send a signal to the groups of all that run.
stage_kill() {
  local pid
  for pid in "${!stage_running[@]}"; do
    kill "$1" -- "-$pid" 2>/dev/null || true
  done
}

# Ctrl-C reaches only this script: pass it on, wait for the orderly end of all, and end those that do not come to one.
stage_interrupt() {
  local killer
  trap '' INT TERM HUP
  printf '\n== interrupted: %s\n' "$(printf '%s; ' "${stage_running[@]}")"
  stage_kill -INT
  (sleep 15 && stage_kill -KILL) &
  killer=$!
  wait "${!stage_running[@]}" 2>/dev/null || true
  kill -KILL -- "-$killer" 2>/dev/null || true
  stage_kill -KILL # what ignores an interrupt, as the background jobs of shells do
  exit 130
}
trap stage_interrupt INT TERM HUP
