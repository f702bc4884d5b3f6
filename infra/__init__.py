"""Where Ray, MLflow and the machines are met."""

import gc

# Imports make half a million objects. By default the collector of cycles looks at them 1,300 times, which is a sixth of
# the imports' CPU time. A training step leaves no cycle, so nothing waits longer for being found.
gc.set_threshold(10_000)
