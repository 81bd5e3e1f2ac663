#!/usr/bin/env bash
# Runs one command of synguide_jax on a TPU slice of Compute Engine (v5p, v6e,
# TPU7x), which is a managed instance group with a workload policy. A startup
# script installs the committed files of this checkout and runs the command on
# every host; this script waits, creates the group anew when it was preempted or
# the command can continue, and deletes everything at the end, also after a
# failure or Ctrl-C.
#
# Never run on the real service; the tests run it against a fake gcloud. The
# flags are those of gcloud's reference and of public accounts of such slices;
# not every version of the reference has --target-size-policy-mode=bulk. Not
# confirmed: what list-instances says of a preempted slice, and where the images
# have gcloud.
#
#   PROJECT=my-project ZONE=us-east5-a NAME=synguide \
#     STAGING=gs://my-bucket/stage \
#     MACHINE=ct6e-standard-4t TOPOLOGY=4x4 HOSTS=4 SPOT=1 \
#     launch/gce_mig.sh [--dry-run] \
#     main --config=configs/cifar_lowshot.py --workdir=gs://my-bucket/runs/first
#   ... launch/gce_mig.sh [--dry-run] delete
#
# STAGING is where the code goes and the exit code comes back. IMAGE_FAMILY,
# SPOT=1, KEEP=1 keeps everything, RESTARTS (20), WAIT (60 s between looks).
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

dry_run=""
if [[ "${1:-}" == "--dry-run" ]]; then
  dry_run=1
  shift
fi
project="${PROJECT:?the Google Cloud project}"
zone="${ZONE:?the zone of the TPU, such as us-east5-a}"
name="${NAME:?a name for the group, its template and its policy}"
: "${1:?a command of the package, such as main, and its flags}"
region="${zone%-*}"
policy="projects/${project}/regions/${region}/resourcePolicies/${name}"
group=(gcloud compute instance-groups managed)
where=(--project="${project}" --zone="${zone}")

delete_group() {
  run "${group[@]}" delete "${name}" "${where[@]}" --quiet
}

delete_all() {
  local failed=0
  delete_group || failed=1
  run gcloud compute instance-templates delete "${name}" \
    --project="${project}" --quiet || failed=1
  run gcloud compute resource-policies delete "${name}" \
    --project="${project}" --region="${region}" --quiet || failed=1
  return "${failed}"
}

if [[ "$1" == delete ]]; then
  delete_all
  exit
fi
staging="${STAGING:?a folder for the code, such as gs://my-bucket/stage}"
machine="${MACHINE:?the machine type, such as ct6e-standard-4t}"
topology="${TOPOLOGY:?the topology of the slice, such as 4x4}"
hosts="${HOSTS:?the number of hosts, chips of the topology / of the machine}"
has_bucket_workdir "$@" || die "The hosts need one workdir that all see, and" \
  "none is brought back: add --workdir=gs://<bucket>/<folder>."
family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e
if [[ "${machine}" == tpu7x-* ]]; then
  family=ubuntu-accel-2404-amd64-tpu-tpu7x
fi
spot=()
if [[ -n "${SPOT:-}" ]]; then
  spot=(--provisioning-model=SPOT --instance-termination-action=STOP)
fi
training="$(training "$1" --multihost "${@:2}")"
scratch="$(mktemp -d)"
startup="${scratch}/startup.sh" shutdown="${scratch}/shutdown.sh"
created="" restarts=0

# shellcheck disable=SC2329 # Called by the trap.
finish() {
  rm -r "${scratch}"
  if [[ -n "${created}" && -n "${KEEP:-}" ]]; then
    say "the group costs until launch/gce_mig.sh delete is run."
  elif [[ -n "${created}" ]]; then
    delete_all || say "not all is deleted: run launch/gce_mig.sh delete."
  fi
}
trap finish EXIT
# The tools end as after an error, which bash alone would take for one.
trap 'exit 130' INT

# The first host to end says how: processes that train together finish together.
# The shutdown script gives the command time to save at a preemption.
cat >"${startup}" <<STARTUP
#!/usr/bin/env bash
export HOME=/root PATH="\${PATH}:/snap/bin"
cd /root
(gcloud storage cp ${staging@Q}/synguide_jax.tar.gz . && ${install}) &&
  (echo "\${BASHPID}" >/run/synguide.pid && ${training})
echo "\$?" >exit_code
gcloud storage cp --if-generation-match=0 exit_code ${staging@Q}/exit_code
STARTUP
cat >"${shutdown}" <<'SHUTDOWN'
#!/usr/bin/env bash
kill -TERM "$(cat /run/synguide.pid)"
timeout 90 tail --pid="$(cat /run/synguide.pid)" -f /dev/null
SHUTDOWN

start() {
  # There is none before the first start.
  run gcloud storage rm "${staging}/exit_code" || true
  run "${group[@]}" create "${name}" "${where[@]}" --template="${name}" \
    --size="${hosts}" --workload-policy="${policy}" \
    --target-size-policy-mode=bulk --default-action-on-vm-failure=do-nothing
}

# Sets code to what the hosts ended with, 143 where they had no time to say.
await() {
  code=0
  if [[ -n "${dry_run}" ]]; then
    run gcloud storage cat "${staging}/exit_code"
    return
  fi
  while ! code="$(gcloud storage cat "${staging}/exit_code" 2>/dev/null)"; do
    code=143
    if "${group[@]}" list-instances "${name}" "${where[@]}" \
      --format="value(instanceStatus)" | grep -q -e STOP -e TERMINATED; then
      return
    fi
    sleep "${WAIT:-60}"
  done
}

pack "${scratch}/synguide_jax.tar.gz"
run gcloud storage cp "${scratch}/synguide_jax.tar.gz" "${staging}/"
run gcloud compute resource-policies create workload-policy "${name}" \
  --project="${project}" --region="${region}" --type=HIGH_THROUGHPUT \
  --accelerator-topology="${topology}"
created=1
run gcloud compute instance-templates create "${name}" \
  --project="${project}" --machine-type="${machine}" \
  --image-project=ubuntu-os-accelerator-images \
  --image-family="${IMAGE_FAMILY:-${family}}" --boot-disk-size=200GB \
  --maintenance-policy=TERMINATE "${spot[@]}" --scopes=cloud-platform \
  --metadata-from-file="startup-script=${startup},shutdown-script=${shutdown}"
start
await
while continues_after "${code}" && ((restarts < ${RESTARTS:-20})); do
  restarts=$((restarts + 1))
  say "exit code ${code}: creating it anew, attempt ${restarts}."
  delete_group
  start
  await
done
exit "${code}"
