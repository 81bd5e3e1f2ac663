"""How tests compile: they compile much and compute little."""

# For XLA_FLAGS. Faster than by XLA's defaults; the programs are slower, and
# made by the same emitters, so that what is equal bit for bit there is so here.
CHEAPLY = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
