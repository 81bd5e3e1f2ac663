"""Several processes, one a host, that train one experiment together."""

from collections.abc import Iterator
import contextlib
import itertools
import os
import sys
import threading

from synguide_jax.errors import UserError

# Seconds until a coordinator or a process that does not appear is an error.
START_TIMEOUT = 300
_DAY = 24 * 60 * 60 * 1000  # ms
_LONGEST_MESSAGE = 2048  # Bytes.

_number = itertools.count()


def initialize(timeout: int = START_TIMEOUT) -> None:
  """Connects the processes; before anything else touches a device.

  Cloud TPU, GKE, Slurm and Open MPI are recognised. Elsewhere every process is
  told by environment variables: ``JAX_COORDINATOR_ADDRESS`` (host:port of the
  first), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``.

  Args:
    timeout: Seconds to wait for the others. After that the process says so and
      ends with code 75, start again; JAX would abort.

  Raises:
    UserError: if it is not known who they are.
  """
  import jax

  address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
  if address and not address.rpartition(":")[2].isdecimal():
    raise UserError(
      f"JAX_COORDINATOR_ADDRESS={address!r} must be host:port of the first "
      "process."
    )
  numbers = {}
  for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
    text = os.environ.get(name, "")
    if text and not text.isdecimal():
      raise UserError(f"{name}={text!r} is not a number.")
    numbers[name] = int(text) if text else None

  def give_up():
    print(
      f"error: --multihost: not all {numbers['JAX_NUM_PROCESSES'] or ''} "
      f"processes met at {address or 'their coordinator'} within {timeout} s. "
      "Is the first one running, can its port be reached from here, and has "
      "each been started?",
      file=sys.stderr,
      flush=True,
    )
    os._exit(os.EX_TEMPFAIL)

  watch = threading.Timer(timeout, give_up)
  watch.daemon = True
  watch.start()
  try:
    jax.distributed.initialize(
      num_processes=numbers["JAX_NUM_PROCESSES"],
      process_id=numbers["JAX_PROCESS_ID"],
      # Never reached.
      initialization_timeout=2 * timeout + 60,
    )
  except ValueError as error:
    raise UserError(
      f"--multihost: {error} On Cloud TPU, GKE, Slurm and Open MPI the "
      "processes are found; elsewhere set JAX_COORDINATOR_ADDRESS, "
      "JAX_NUM_PROCESSES and JAX_PROCESS_ID."
    ) from error
  finally:
    watch.cancel()


def _processes() -> tuple[int, int]:
  """This process's number and how many there are, without loading JAX."""
  jax = sys.modules.get("jax")
  if jax is None or not jax.distributed.is_initialized():
    return 0, 1
  return jax.process_index(), jax.process_count()


def is_first() -> bool:
  """Whether this is the process that writes files and prints."""
  return _processes()[0] == 0


def are_several() -> bool:
  """Whether there are other processes."""
  return _processes()[1] > 1


def leave(code: int) -> None:
  """Ends this process after an error that others may not have had.

  Where all of them fail alike, all leave at once. Otherwise this one waits for
  20 s and goes; JAX then ends the others, within 100 s.
  """
  import jax

  sys.stdout.flush(), sys.stderr.flush()
  watch = threading.Timer(20, os._exit, [code])
  watch.daemon = True
  watch.start()
  jax.distributed.shutdown()
  os._exit(code)


def first_says(answer: bool) -> bool:
  """Returns the first process's answer to what each may see differently."""
  if not are_several():
    return answer
  return _exchange("question", "yes" if answer else "")[0] == "yes"


@contextlib.contextmanager
def in_turn(what: str) -> Iterator[None]:
  """Runs a block in the first process, then in the others.

  So that the others find what the first has made. All processes come here in
  the same order.

  Args:
    what: Names the block, to notice if they do not.

  Raises:
    UserError: in all of them, if one failed.
  """
  if not are_several():
    yield
    return
  failure = None
  if not is_first():
    _agree(what, None)
  try:
    yield
  except Exception as error:
    failure = error
  if is_first():
    _agree(what, failure)
  _agree(what, failure)


def _agree(what: str, failure: Exception | None) -> None:
  """Waits for all processes, and raises if one comes with a failure."""
  text = "" if failure is None else str(failure) or repr(failure)
  failures = _exchange(what, text)
  if failure:
    raise failure
  for process, text in enumerate(failures):
    if text:
      raise UserError(f"Process {process} failed: {text}")


def _exchange(what: str, text: str) -> list[str]:
  """Returns every process's text, cut to what fits."""
  from jax.experimental import multihost_utils
  import numpy as np
  from orbax.checkpoint import multihost

  # The first may prepare sets for hours; transfers give up after half a minute.
  wait = multihost.get_barrier_sync_fn()
  wait(key=f"synguide_jax_{next(_number)}", timeout_ms=_DAY)
  encoded = f"{what}: {text}".encode()[:_LONGEST_MESSAGE].ljust(
    _LONGEST_MESSAGE, b"\0"
  )
  everybody = multihost_utils.process_allgather(
    np.frombuffer(encoded, np.uint8)
  )
  lines = [
    bytes(row).rstrip(b"\0").decode(errors="ignore")
    for row in np.asarray(everybody)
  ]
  if any(not line.startswith(f"{what}: ") for line in lines):
    raise RuntimeError(f"The processes do different things: {lines}.")
  return [line.removeprefix(f"{what}: ") for line in lines]
