#!/usr/bin/env bash
# Runs one command of synguide_jax on a TPU slice of Compute Engine (v5p, v6e,
# TPU7x), which is a managed instance group with a workload policy. A startup
# script installs the committed files of this checkout and runs the command on
# every host; this script waits, creates the group anew when it was preempted or
# the command can continue, and deletes everything at the end, also after a
# failure or Ctrl-C.
#
# Never run on the real service; the tests run it against a fake gcloud. The
# flags are those of gcloud's reference and of public accounts of such slices.
# Not confirmed: what list-instances says of a preempted slice; where the images
# have gcloud; whether the hosts have the metadata agent-worker-number and
# worker-network-endpoints, from which JAX knows them as one slice; and whether
# bulk creation goes with SPOT=1: Google's page on spot TPUs has groups of them,
# but of the page on bulk mode one version allows reservations and flex-start
# only. Where gcloud refuses it, set SIZE_POLICY to nothing.
#
#   PROJECT=my-project ZONE=us-east5-a NAME=synguide \
#     STAGING=gs://my-bucket/stage \
#     MACHINE=ct6e-standard-4t TOPOLOGY=4x4 HOSTS=4 SPOT=1 \
#     launch/gce_mig.sh [--dry-run] \
#     main --config=configs/cifar_lowshot.py --workdir=gs://my-bucket/runs/first
#   ... launch/gce_mig.sh [--dry-run] delete
#
# STAGING/NAME is where the code goes and the exit code comes back.
# IMAGE_FAMILY, SPOT=1, SIZE_POLICY (bulk; empty leaves the flag out), KEEP=1
# keeps everything, RESTARTS (20), CREATES (50 attempts to create the group
# anew), START_LIMIT (30 minutes a running host has to begin), FAILURES (10
# looks that fail in a row), WAIT (60 s between looks).
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

templates=(gcloud compute instance-templates)
policies=(gcloud compute resource-policies)
in_region=(--project="${project}" --region="${region}")
# What this script made, the last first.
made=()

delete_group() {
  delete "${group[@]}" delete "${name}" "${where[@]}" --quiet
}

delete_made() {
  local kind failed=0
  for kind in "${made[@]}"; do
    case "${kind}" in
      group) delete_group ;;
      template)
        delete "${templates[@]}" delete "${name}" --project="${project}" \
          --quiet
        ;;
      policy)
        delete "${policies[@]}" delete "${name}" "${in_region[@]}" --quiet
        ;;
    esac || failed=1
  done
  return "${failed}"
}

if [[ "$1" == delete ]]; then
  made=(group template policy)
  delete_made
  exit
fi
staging="${STAGING:?a folder for the code, such as gs://my-bucket/stage}"
# Experiments of other names may share the folder.
staging="${staging%/}/${name}"
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
size_policy="${SIZE_POLICY-bulk}"
restarts=0

# shellcheck disable=SC2329 # Called by the trap.
finish() {
  trap '' INT TERM HUP
  rm -r "${scratch}"
  if ((${#made[@]})) && [[ -n "${KEEP:-}" ]]; then
    say "the group costs until launch/gce_mig.sh delete is run."
  elif ((${#made[@]})); then
    say "deleting, please wait."
    delete_made || exit 1
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
touch started
gcloud storage cp started ${staging@Q}/started
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

create_group() {
  local marker
  for marker in started exit_code; do
    # There is none before the first start.
    run gcloud storage rm "${staging}/${marker}" || true
  done
  # Also what fails or is interrupted may come to be.
  made=(group template policy)
  run "${group[@]}" create "${name}" "${where[@]}" --template="${name}" \
    --size="${hosts}" --workload-policy="${policy}" \
    ${size_policy:+--target-size-policy-mode="${size_policy}"} \
    --default-action-on-vm-failure=do-nothing
}

# What is not deleted costs money, so no other is created then.
remove_group() {
  delete_group || exit 1
  made=(template policy)
}

# shellcheck disable=SC2329 # Called by wait_for_capacity.
create_or_remove_group() {
  create_group || {
    remove_group
    return 1
  }
}

# Sets code to what the hosts ended with, 143 where they had no time to say.
await() {
  local listed failures=0 deadline="" started=""
  code=0
  if [[ -n "${dry_run}" ]]; then
    run gcloud storage cat "${staging}/exit_code"
    return
  fi
  while ! code="$(gcloud storage cat "${staging}/exit_code" 2>/dev/null)"; do
    code=143
    if listed="$("${group[@]}" list-instances "${name}" "${where[@]}" \
      --format="value(instanceStatus)" 2>"${scratch}/error")"; then
      failures=0
    else
      listed=""
      failures=$((failures + 1))
      cat "${scratch}/error" >&2
    fi
    if ((failures == ${FAILURES:-10})); then
      say "gcloud failed ${failures} times in a row."
      exit 1
    elif [[ "${listed}" == *STOP* || "${listed}" == *TERMINATED* ]]; then
      return
    elif [[ -z "${started}" && "${listed}" == *RUNNING* ]]; then
      # Before a host runs it waits for capacity, which may take its time.
      deadline="${deadline:-$((SECONDS + 60 * ${START_LIMIT:-30}))}"
      if gcloud storage ls "${staging}/started" >/dev/null 2>&1; then
        started=1
      elif ((SECONDS >= deadline)); then
        say "hosts run, but in ${START_LIMIT:-30} minutes none has written" \
          "${staging}/started: may Compute Engine's service account write" \
          "there, and has the image gcloud?"
        exit 1
      fi
    fi
    sleep "${WAIT:-60}"
  done
}

must_be_missing "${policies[@]}" describe "${name}" "${in_region[@]}"
must_be_missing "${templates[@]}" describe "${name}" --project="${project}"
must_be_missing "${group[@]}" describe "${name}" "${where[@]}"
pack "${scratch}/synguide_jax.tar.gz"
run gcloud storage cp "${scratch}/synguide_jax.tar.gz" "${staging}/"
# The exit code will have to be found there.
run gcloud storage ls "${staging}/"
if [[ -n "${dry_run}" ]]; then
  sed 's/^/# /' "${startup}" "${shutdown}"
fi
made=(policy)
run "${policies[@]}" create workload-policy "${name}" "${in_region[@]}" \
  --type=HIGH_THROUGHPUT --accelerator-topology="${topology}"
made=(template policy)
run "${templates[@]}" create "${name}" \
  --project="${project}" --machine-type="${machine}" \
  --image-project=ubuntu-os-accelerator-images \
  --image-family="${IMAGE_FAMILY:-${family}}" --boot-disk-size=200GB \
  --maintenance-policy=TERMINATE "${spot[@]}" --scopes=cloud-platform \
  --metadata-from-file="startup-script=${startup},shutdown-script=${shutdown}"
create_group
await
while continues_after "${code}" && ((restarts < ${RESTARTS:-20})); do
  restarts=$((restarts + 1))
  say "exit code ${code}: creating it anew, restart ${restarts}."
  remove_group
  wait_for_capacity create_or_remove_group || break
  await
done
exit "${code}"
