#!/usr/bin/env bash
# Runs one command of synguide_jax on a GKE cluster as a JobSet: fills in
# gke_jobset.yaml (TPU) or gke_jobset_gpu.yaml, creates it, shows the log of the
# first process until the JobSet ends, and deletes it, also after a failure or
# Ctrl-C. GKE restarts it after preemptions, so KEEP=1 and Ctrl-C leaves it
# running.
#
# Never run on the real service; the tests run it against a fake kubectl and
# check the filled-in files against Kubernetes' schema. See README.md for the
# cluster.
#
#   NAME=synguide IMAGE=us-docker.pkg.dev/my-project/images/synguide:tpu \
#     HOSTS=4 CHIPS=4 ACCELERATOR=tpu-v6e-slice TOPOLOGY=4x4 \
#     launch/gke.sh [--dry-run] tpu \
#     main --config=configs/cifar_lowshot.py --workdir=gs://my-bucket/runs/first
#   NAME=synguide IMAGE=... HOSTS=2 CHIPS=8 ACCELERATOR=nvidia-h100-80gb \
#     launch/gke.sh [--dry-run] gpu main ...
#   NAME=synguide launch/gke.sh [--dry-run] render tpu|gpu main ...
#   NAME=synguide launch/gke.sh [--dry-run] delete
#
# CHIPS is TPU chips or GPUs a host. SERVICE_ACCOUNT (default) is the Kubernetes
# one that may write to the bucket. RESTARTS (20), WAIT (10 s between looks),
# FAILURES (10 looks that fail in a row).
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

dry_run="" only_render=""
if [[ "${1:-}" == "--dry-run" ]]; then
  dry_run=1
  shift
fi
: "${NAME:?a name for the JobSet}"
if [[ "${1:-}" == delete ]]; then
  delete kubectl delete jobset "${NAME}"
  exit
fi
if [[ "${1:-}" == render ]]; then
  only_render=1
  shift
fi
case "${1:-}" in
  tpu)
    manifest=gke_jobset.yaml
    : "${TOPOLOGY:?the topology of the slice, such as 4x4}"
    ;;
  gpu) manifest=gke_jobset_gpu.yaml ;;
  *) die "say tpu or gpu, then a command of the package and its flags." ;;
esac
shift
: "${IMAGE:?the container image, see launch/README.md}"
: "${HOSTS:?the number of hosts, such as 4}"
: "${CHIPS:?TPU chips or GPUs a host, such as 4}"
: "${ACCELERATOR:?such as tpu-v6e-slice or nvidia-h100-80gb}"
: "${1:?a command of the package, such as main, and its flags}"
has_bucket_workdir "$@" || die "A pod's disk goes with it, and the hosts need" \
  "one workdir that all see: add --workdir=gs://<bucket>/<folder>."

# The command as a list in JSON, which is YAML too. Kubernetes would expand
# $(..) and reads $$ as $.
quote() {
  local text separator=""
  printf '['
  for text in "$@"; do
    [[ "${text}" != *[[:cntrl:]]* ]] || die "An argument has a line break."
    text="${text//\\/\\\\}"
    text="${text//\"/\\\"}"
    printf '%s"%s"' "${separator}" "${text//\$/\$\$}"
    separator=", "
  done
  printf ']'
}

COMMAND="$(quote python -m "synguide_jax.$1" --multihost "${@:2}")"
export NAME IMAGE HOSTS CHIPS ACCELERATOR TOPOLOGY COMMAND
export RESTARTS="${RESTARTS:-20}" SERVICE_ACCOUNT="${SERVICE_ACCOUNT:-default}"
scratch="$(mktemp -d)"
created=""

# shellcheck disable=SC2329 # Called by the trap.
finish() {
  trap '' INT TERM HUP
  rm -r "${scratch}"
  if [[ -n "${created}" && -n "${KEEP:-}" ]]; then
    say "the JobSet stays until launch/gke.sh delete is run."
  elif [[ -n "${created}" ]]; then
    say "deleting, please wait."
    delete kubectl delete jobset "${NAME}" || exit 1
  fi
}
trap finish EXIT
# The tools end as after an error, which bash alone would take for one.
trap 'exit 130' INT

# Nothing but these is replaced.
# shellcheck disable=SC2016
envsubst '$NAME $IMAGE $HOSTS $CHIPS $ACCELERATOR $TOPOLOGY $COMMAND $RESTARTS
  $SERVICE_ACCOUNT' <"$(dirname "${BASH_SOURCE[0]}")/${manifest}" \
  >"${scratch}/${NAME}.yaml"
if [[ -n "${only_render}" ]]; then
  cat "${scratch}/${NAME}.yaml"
  exit
fi

logs=(kubectl logs --follow --tail=100 "--selector=jobset.sigs.k8s.io/\
jobset-name=${NAME},batch.kubernetes.io/job-completion-index=0")
state=(kubectl get jobset "${NAME}" --output "jsonpath={.status.terminalState}")
# Fails where there is one of this name, which then is not deleted either.
run kubectl create --filename "${scratch}/${NAME}.yaml"
created=1
if [[ -n "${dry_run}" ]]; then
  run "${state[@]}"
  exit
fi
# Empty until it ends; a log ends with each pod, restarts come in between.
failures=0 ended=""
while :; do
  if ended="$("${state[@]}" 2>"${scratch}/error")"; then
    failures=0
    [[ -z "${ended}" ]] || break
  else
    cat "${scratch}/error" >&2
    ! says_missing "$(<"${scratch}/error")" || exit 1
    failures=$((failures + 1))
    if ((failures == ${FAILURES:-10})); then
      say "kubectl failed ${failures} times in a row."
      exit 1
    fi
  fi
  "${logs[@]}" || true
  sleep "${WAIT:-10}"
done
say "${NAME}: ${ended}"
[[ "${ended}" == Completed ]]
