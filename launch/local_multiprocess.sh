#!/usr/bin/env bash
# Runs one command of synguide_jax as several processes on this machine that
# train together, as on several hosts. For trying multi-host runs out; to use
# all GPUs of one machine, one process is enough and simpler. The tests of the
# package use it.
#
#   PROCESSES=2 DEVICES=2 launch/local_multiprocess.sh [--dry-run] \
#     main --config=configs/digits_lowshot.py:smoke --workdir=/tmp/runs/first
#
# DEVICES=n gives each process n CPU devices; without it each takes the GPU of
# its number, where there are any. The output is the first process's; lines of
# others start with their number, as [1]. When one process fails, the others
# have GRACE (60) seconds to end by themselves, and the exit code is that of the
# first to fail. RESTARTS (0) runs all again after the exit codes in README.md.
# SIGTERM and Ctrl-C go to all processes.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

dry_run=""
if [[ "${1:-}" == "--dry-run" ]]; then
  dry_run=1
  shift
fi
processes="${PROCESSES:?how many processes, such as 2}"
: "${1:?a command of the package, such as main, and its flags}"
pids=() signal="" stopping="" code=0 restarts=0

# Below the ports that systems hand out by themselves.
free_port() {
  local port
  while port=$((20000 + RANDOM % 10000)); do
    if ! (: >"/dev/tcp/127.0.0.1/${port}") 2>/dev/null; then
      echo "${port}"
      return
    fi
  done
}

number_lines() {
  trap '' INT TERM
  local line
  while IFS= read -r line || [[ -n "${line}" ]]; do
    echo "[$1] ${line}"
  done
}

# Starts the command $2.. as the process of number $1.
start() {
  local number="$1"
  shift
  if [[ -n "${dry_run}" ]]; then
    run "$@"
  elif ((number == 0)); then
    "$@" </dev/null &
    pids+=("$!")
  else
    "$@" </dev/null > >(number_lines "${number}") \
      2> >(number_lines "${number}" >&2) &
    pids+=("$!")
  fi
}

start_all() {
  local number variables address
  address="127.0.0.1:$(free_port)"
  for ((number = 0; number < processes; number++)); do
    variables=(
      JAX_COORDINATOR_ADDRESS="${address}"
      JAX_NUM_PROCESSES="${processes}"
      JAX_PROCESS_ID="${number}"
    )
    if [[ -n "${DEVICES:-}" ]]; then
      variables+=(JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${DEVICES}")
    else
      variables+=(JAX_LOCAL_DEVICE_IDS="${number}")
    fi
    start "${number}" env "${variables[@]}" \
      python -m "synguide_jax.$1" --multihost "${@:2}"
  done
}

# Sends a signal to the process groups, so to decoding processes too.
kill_all() {
  local pid
  for pid in "${pids[@]}"; do
    kill -KILL -- "-${pid}" 2>/dev/null || true
  done
}

# Waits for all; sets code to that of the first that failed, else to 0.
await_all() {
  local pid status running deadline=""
  code=0
  while ((${#pids[@]})); do
    if [[ -n "${signal}" ]]; then
      kill "-${signal}" "${pids[@]}" 2>/dev/null || true
      stopping=1 signal="" deadline=$((SECONDS + ${GRACE:-60}))
    fi
    running=()
    for pid in "${pids[@]}"; do
      if kill -0 "${pid}" 2>/dev/null; then
        running+=("${pid}")
        continue
      fi
      status=0
      wait "${pid}" || status=$?
      if ((status != 0 && code == 0)); then
        code="${status}" deadline="${deadline:-$((SECONDS + ${GRACE:-60}))}"
      fi
    done
    pids=("${running[@]}")
    if [[ -n "${deadline}" ]] && ((SECONDS > deadline)); then
      kill_all
    fi
    sleep 0.1
  done
}

# Process groups of their own: bash has other background commands ignore Ctrl-C.
set -m
trap 'signal=INT' INT
trap 'signal=TERM' TERM
trap kill_all EXIT
while :; do
  start_all "$@"
  await_all
  if [[ -n "${stopping}" ]] || ! continues_after "${code}" ||
    ((restarts >= ${RESTARTS:-0})); then
    exit "${code}"
  fi
  restarts=$((restarts + 1))
  say "exit code ${code}, restart ${restarts} of ${RESTARTS}."
done
