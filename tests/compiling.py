"""How tests compile: they compile much and compute little."""

import platform

# For XLA_FLAGS. A third less time than by XLA's defaults, for slower programs.
# These emitters would fuse multiplications with additions in one program and
# not in another; without FMA what is equal bit for bit by XLA's defaults is so.
CHEAPLY = " ".join(
  [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    *["--xla_cpu_max_isa=AVX"] * (platform.machine() == "x86_64"),
  ]
)
