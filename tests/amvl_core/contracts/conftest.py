"""Records as those of a run."""

from tests.infra.conftest import checkpoint as checkpoint
from tests.infra.conftest import dataset as dataset
