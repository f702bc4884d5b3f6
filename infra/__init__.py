"""Where Ray, MLflow and the machines are met."""

import gc

# Imports make many objects that stay, and by default the collector of cycles looks at them more than a thousand times
# (docs/benchmarks.md has what that takes). A training step leaves no cycle that it would have to find.
gc.set_threshold(10_000)
