#!/usr/bin/env bash
# Runs one command of synguide_jax on a Cloud TPU slice: creates it, installs
# the committed files of this checkout on all hosts, runs the command on all of
# them, continues after a preemption on a new slice, and deletes the slice at
# the end, also after a failure or Ctrl-C.
#
# Never run on the real service; the tests run it against a fake gcloud. It uses
# the Cloud TPU API (gcloud compute tpus tpu-vm), which Google maintains for v4
# to v6e without developing it further; for newer generations see gce_mig.sh.
#
#   PROJECT=my-project ZONE=us-west4-a TYPE=v5litepod-16 NAME=synguide SPOT=1 \
#     launch/tpu_vm.sh [--dry-run] \
#     main --config=configs/cifar_lowshot.py --workdir=gs://my-bucket/runs/first
#   ... launch/tpu_vm.sh [--dry-run] delete
#
# IMAGE (v2-alpha-tpuv5-lite), SPOT=1, KEEP=1 keeps the slice, RESTARTS (20),
# CREATES (50 attempts to create it anew while there is no capacity), FAILURES
# (10 looks at it that fail in a row), WAIT (60 s between these, at first).
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

dry_run=""
if [[ "${1:-}" == "--dry-run" ]]; then
  dry_run=1
  shift
fi
project="${PROJECT:?the Google Cloud project}"
zone="${ZONE:?the zone of the TPU, such as us-west4-a}"
type="${TYPE:?the accelerator type, such as v5litepod-8}"
name="${NAME:?a name for the TPU VM}"
: "${1:?a command of the package, such as main, and its flags}"
tpu=(gcloud compute tpus tpu-vm)
where=(--project="${project}" --zone="${zone}")
delete=("${tpu[@]}" delete "${name}" "${where[@]}" --quiet)
describe=("${tpu[@]}" describe "${name}" "${where[@]}" --format="value(state)")
# Without the flag a silent training looks like a connection that is idle.
ssh=("${tpu[@]}" ssh "${name}" "${where[@]}" --worker=all
  --ssh-flag="-o ServerAliveInterval=60")

if [[ "$1" == delete ]]; then
  delete "${delete[@]}"
  exit
fi
[[ "${type}" =~ -([0-9]+)$ ]] || die "TYPE=${type} has no size, such as -8."
bucket="" multihost=()
if has_bucket_workdir "$@"; then
  bucket=1
fi
folder="$(workdir "$@")"
if ((BASH_REMATCH[1] > 8)); then
  multihost=(--multihost)
  [[ -n "${bucket}" ]] || die "TYPE=${type} has several hosts, which need" \
    "one workdir that all see: add --workdir=gs://<bucket>/<folder>."
elif [[ -n "${folder}" && -z "${bucket}" ]]; then
  die "--workdir=${folder} would go with the TPU VM: leave it out, so that" \
    "runs/ is brought back, or give --workdir=gs://<bucket>/<folder>."
fi
# Where the connection breaks, ssh ends with 255 and gcloud starts the command
# again, up to ten times, while the first may still be at work. The lock, which
# the processes of the command share, lets only one of them.
training="$(training "$1" "${multihost[@]}" "${@:2}")"
training="flock -n -E 255 ~/synguide.lock bash -c ${training@Q}"
scratch="$(mktemp -d)"
created="" trained="" restarts=0

# shellcheck disable=SC2329 # Called by the trap.
finish() {
  trap '' INT TERM HUP
  rm -r "${scratch}"
  [[ -n "${created}" ]] || return 0
  # With its checkpoints the same command continues.
  if [[ -n "${trained}" && -z "${bucket}" ]] && ! run \
    "${tpu[@]}" scp --recurse "${name}:synguide_jax/runs" . "${where[@]}"
  then
    say "could not bring the workdirs back, so the TPU VM is kept."
    KEEP=1
  fi
  if [[ -n "${KEEP:-}" ]]; then
    say "the TPU VM costs until this is run: $(printf '%q ' "${delete[@]}")"
  else
    say "deleting, please wait."
    delete "${delete[@]}" || exit 1
  fi
}
trap finish EXIT
# gcloud ends as after an error, which bash alone would take for one.
trap 'exit 130' INT

# Sets state to what the service calls the TPU VM, to MISSING where it says that
# there is none, and to UNKNOWN where it cannot be asked for long.
look() {
  local failures
  for ((failures = 0; failures < ${FAILURES:-10}; failures++)); do
    if state="$("${describe[@]}" 2>"${scratch}/error")"; then
      return
    elif says_missing "$(<"${scratch}/error")"; then
      state=MISSING
      return
    fi
    cat "${scratch}/error" >&2
    sleep "${WAIT:-60}"
  done
  state=UNKNOWN
}

create() {
  # Also what failed or was interrupted may come to be.
  created=1
  run "${tpu[@]}" create "${name}" "${where[@]}" \
    --accelerator-type="${type}" \
    --version="${IMAGE:-v2-alpha-tpuv5-lite}" ${SPOT:+--spot}
}

set_up() {
  run "${tpu[@]}" scp "${scratch}/synguide_jax.tar.gz" "${name}:" \
    "${where[@]}" --worker=all &&
    run "${ssh[@]}" --command="${install}"
}

# What is not deleted costs money, so no other is created then.
remove() {
  delete "${delete[@]}" || exit 1
  created=""
}

# shellcheck disable=SC2329 # Called by wait_for_capacity.
create_or_remove() {
  create || {
    remove
    return 1
  }
}

recreate() {
  while ((restarts < ${RESTARTS:-20})); do
    restarts=$((restarts + 1))
    say "creating it anew, restart ${restarts} of ${RESTARTS:-20}."
    remove
    wait_for_capacity create_or_remove || return 1
    if set_up; then
      return 0
    fi
  done
  return 1
}

must_be_missing "${describe[@]}"
pack "${scratch}/synguide_jax.tar.gz"
create
set_up
while :; do
  trained=1 code=0
  run "${ssh[@]}" --command="${training}" || code=$?
  if ((code == 2)); then
    # The command was wrong and has written nothing worth keeping.
    trained=""
  fi
  ((code != 0 && code != 2)) || break
  look
  say "the command ended with exit code ${code}, the TPU VM is ${state}."
  [[ "${state}" != UNKNOWN ]] || break
  # 255 is ssh's own, or that of the lock: the command may still be at work.
  if [[ "${state}" != READY ]] ||
    { ((code == 255)) && [[ -n "${bucket}" ]]; }; then
    trained=""
    recreate || break
  elif continues_after "${code}" && ((code != 255)) &&
    ((restarts < ${RESTARTS:-20})); then
    restarts=$((restarts + 1))
  else
    break
  fi
done
exit "${code}"
