# shellcheck shell=bash
# What the launch scripts share; they source it.

# Prints a line for people, so that standard output stays the commands' own.
say() {
  echo "${0##*/}: $*" >&2
}

die() {
  say "$@"
  exit 2
}

# Runs a command, or under --dry-run prints it as a shell would read it.
run() {
  if [[ -n "${dry_run:-}" ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Whether the same command continues after this exit code: it was asked to stop
# and has saved (75), or a signal killed it, but for Ctrl-C (130).
continues_after() {
  (($1 == 75 || ($1 >= 128 && $1 != 130)))
}

# Prints the workdir that a command line names; of several the last one counts.
workdir() {
  local argument previous="" folder=""
  for argument in "$@"; do
    if [[ "${argument}" == --workdir=* ]]; then
      folder="${argument#*=}"
    elif [[ "${previous}" == --workdir ]]; then
      folder="${argument}"
    fi
    previous="${argument}"
  done
  echo "${folder}"
}

# Whether a command line names a workdir that all hosts see.
has_bucket_workdir() {
  [[ "$(workdir "$@")" == gs://* ]]
}

# Whether this, said by gcloud or kubectl, means that there is no such thing.
# All else may be a network or a login that failed.
says_missing() {
  [[ "$1" == *NOT_FOUND* || "$1" == *"was not found"* ||
    "$1" == *"(NotFound)"* ]]
}

# Dies unless this command, which describes a thing, says that there is none:
# what was there before is not the script's to use or to delete.
must_be_missing() {
  local said
  if [[ -n "${dry_run:-}" ]]; then
    run "$@"
  elif said="$("$@" 2>&1)"; then
    die "there is one already, so delete it or take another NAME:" \
      "$(printf '%q ' "$@")"
  elif ! says_missing "${said}"; then
    die "${said}"
  fi
}

# Runs a deletion, three times at most; what is gone already is deleted, too.
delete() {
  local attempt said
  if [[ -n "${dry_run:-}" ]]; then
    run "$@"
    return
  fi
  for attempt in 1 2 3; do
    if said="$("$@" 2>&1)" || says_missing "${said}"; then
      return 0
    fi
    say "${said}"
    ((attempt == 3)) || sleep "${WAIT:-10}"
  done
  say "NOT DELETED, and it may cost money until this is run:" \
    "$(printf '%q ' "$@")"
  return 1
}

# Runs a command, which makes a slice, until it succeeds, CREATES times at most:
# there may be no capacity. The pauses grow to half an hour.
wait_for_capacity() {
  local failures=0 limit="${CREATES:-50}" pause="${WAIT:-60}"
  until "$@"; do
    failures=$((failures + 1))
    say "could not be created, ${failures} of ${limit} times."
    ((failures < limit)) || return 1
    sleep "${pause}"
    pause=$((pause < 900 ? 2 * pause : 1800))
  done
}

# Packs the committed files of this checkout into the file $1.
pack() {
  run git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --format=tar.gz \
    --prefix=synguide_jax/ --output="$1" HEAD
}

# What a fresh TPU host runs where synguide_jax.tar.gz lies. The images' own
# Python may be older than 3.11, so uv brings one; the variable lets pip install
# uv where the distribution would forbid it, and older pips ignore it. --clear:
# after a reboot a host does it again.
# shellcheck disable=SC2034
install="tar -xzf synguide_jax.tar.gz && cd synguide_jax \
&& PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv \
&& ~/.local/bin/uv venv -q --clear --seed --python 3.12 .venv \
&& . .venv/bin/activate \
&& pip install -q -e '.[tpu]' && mkdir -p runs"

# What such a host runs to train, for a command of the package and its flags.
training() {
  echo "cd synguide_jax && . .venv/bin/activate \
&& exec python -m synguide_jax.$(printf '%q ' "$@")"
}
