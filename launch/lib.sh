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

# Whether a command line names a workdir that all hosts see.
has_bucket_workdir() {
  local argument
  for argument in "$@"; do
    [[ "${argument}" != --workdir=gs://* ]] || return 0
  done
  return 1
}

# Packs the committed files of this checkout into the file $1.
pack() {
  run git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --format=tar.gz \
    --prefix=synguide_jax/ --output="$1" HEAD
}

# What a fresh TPU host runs where synguide_jax.tar.gz lies. The images' own
# Python may be older than 3.11, so uv brings one; the variable lets pip install
# uv where the distribution would forbid it, and older pips ignore it.
# shellcheck disable=SC2034
install="tar -xzf synguide_jax.tar.gz && cd synguide_jax \
&& PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv \
&& ~/.local/bin/uv venv -q --seed --python 3.12 .venv && . .venv/bin/activate \
&& pip install -q -e '.[tpu]'"

# What such a host runs to train, for a command of the package and its flags.
training() {
  echo "cd synguide_jax && . .venv/bin/activate \
&& exec python -m synguide_jax.$(printf '%q ' "$@")"
}
