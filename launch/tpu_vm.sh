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
# WAIT (60 s between attempts to create it anew).
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

if [[ "$1" == delete ]]; then
  run "${delete[@]}"
  exit
fi
[[ "${type}" =~ -([0-9]+)$ ]] || die "TYPE=${type} has no size, such as -8."
bucket="" multihost=()
if has_bucket_workdir "$@"; then
  bucket=1
fi
if ((BASH_REMATCH[1] > 8)); then
  multihost=(--multihost)
  [[ -n "${bucket}" ]] || die "TYPE=${type} has several hosts, which need" \
    "one workdir that all see: add --workdir=gs://<bucket>/<folder>."
fi
training="$(training "$1" "${multihost[@]}" "${@:2}")"
scratch="$(mktemp -d)"
created="" trained="" restarts=0

# shellcheck disable=SC2329 # Called by the trap.
finish() {
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
    run "${delete[@]}" || say "not deleted: $(printf '%q ' "${delete[@]}")"
  fi
}
trap finish EXIT
# gcloud ends as after an error, which bash alone would take for one.
trap 'exit 130' INT

create() {
  # Also what was interrupted may come to be.
  created=1
  if ! run "${tpu[@]}" create "${name}" "${where[@]}" \
    --accelerator-type="${type}" \
    --version="${IMAGE:-v2-alpha-tpuv5-lite}" ${SPOT:+--spot}; then
    created=""
    return 1
  fi
  run "${tpu[@]}" scp "${scratch}/synguide_jax.tar.gz" "${name}:" \
    "${where[@]}" --worker=all &&
    run "${tpu[@]}" ssh "${name}" "${where[@]}" --worker=all \
      --command="${install}"
}

recreate() {
  while ((restarts < ${RESTARTS:-20})); do
    restarts=$((restarts + 1))
    say "creating it anew, attempt ${restarts} of ${RESTARTS:-20}."
    # It may be gone already.
    run "${delete[@]}" || true
    created=""
    sleep "${WAIT:-60}"
    if create; then
      return 0
    fi
  done
  return 1
}

pack "${scratch}/synguide_jax.tar.gz"
create
while :; do
  trained=1 code=0
  run "${tpu[@]}" ssh "${name}" "${where[@]}" --worker=all \
    --command="${training}" || code=$?
  ((code != 0 && code != 2)) || break
  state="$("${tpu[@]}" describe "${name}" "${where[@]}" \
    --format="value(state)" 2>/dev/null)" || state=MISSING
  say "the command ended with exit code ${code}, the TPU VM is ${state}."
  # 255 is ssh's own: what it left behind may still hold the TPU.
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
