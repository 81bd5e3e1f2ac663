"""How tests compile: they compile much and compute little."""

from importlib import metadata
import platform

_JAXLIB = tuple(map(int, metadata.version("jaxlib").split(".")[:2]))

# For XLA_FLAGS; the programs are slower. The older emitters, which newer XLAs
# lack, take two thirds of the time. They would fuse multiplications with
# additions in one program and not in another; without FMA what is equal bit for
# bit by XLA's defaults is so.
CHEAPLY = " ".join(
  [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    *["--xla_cpu_use_fusion_emitters=false"] * (_JAXLIB < (0, 11)),
    *["--xla_cpu_max_isa=AVX"] * (platform.machine() == "x86_64"),
  ]
)
