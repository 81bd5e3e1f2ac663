#!/usr/bin/env bash
# Runs one command of synguide_jax on a single-host Cloud TPU VM (v5e or v6e
# with up to 8 chips) and brings its workdirs back.
#
# Never run on the real service so far; --dry-run prints every command. It uses
# the Cloud TPU API (gcloud compute tpus tpu-vm), which Google maintains for v4
# to v6e only. Slices of several hosts, preemption and newer generations are not
# covered yet.
#
#   PROJECT=my-project ZONE=us-west4-a TYPE=v5litepod-8 NAME=synguide \
#     launch/tpu_vm.sh [--dry-run] \
#     main --config=configs/digits_lowshot.py
set -euo pipefail

run() {
  if [[ -n "${dry_run}" ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

dry_run=""
if [[ "${1:-}" == "--dry-run" ]]; then
  dry_run=1
  shift
fi
project="${PROJECT:?the Google Cloud project}"
zone="${ZONE:?the zone of the TPU, such as us-west4-a}"
type="${TYPE:?the accelerator type, such as v5litepod-8}"
name="${NAME:?a name for the TPU VM}"
image="${IMAGE:-v2-alpha-tpuv5-lite}"
: "${1:?a command of the package, such as main, and its flags}"
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

tpu=(gcloud compute tpus tpu-vm)
where=(--project="${project}" --zone="${zone}")
# The image's own Python is 3.10; uv brings a newer one.
remote="cd synguide_jax && python3 -m pip install -q --user uv \
&& ~/.local/bin/uv venv -q --seed --python 3.12 .venv && . .venv/bin/activate \
&& pip install -q -e '.[tpu]' && python -m synguide_jax.$(printf '%q ' "$@")"

run "${tpu[@]}" create "${name}" "${where[@]}" \
  --accelerator-type="${type}" --version="${image}"
trained=""
finish() {
  # Also after a failure: with its checkpoints the same command continues.
  if [[ -n "${trained}" ]] &&
    ! run "${tpu[@]}" scp --recurse "${name}:synguide_jax/runs" . "${where[@]}"
  then
    echo "Could not bring the workdirs back; the TPU VM is kept. Delete it:" >&2
    printf '%q ' "${tpu[@]}" delete "${name}" "${where[@]}" >&2
    return
  fi
  run "${tpu[@]}" delete "${name}" "${where[@]}" --quiet
}
trap finish EXIT
archive="$(mktemp -d)/synguide_jax.tar.gz"
run git -C "${checkout}" archive --format=tar.gz --prefix=synguide_jax/ \
  --output="${archive}" HEAD
run "${tpu[@]}" scp "${archive}" "${name}:" "${where[@]}"
run "${tpu[@]}" ssh "${name}" "${where[@]}" \
  --command="tar -xzf synguide_jax.tar.gz"
trained=1
run "${tpu[@]}" ssh "${name}" "${where[@]}" --command="${remote}"
