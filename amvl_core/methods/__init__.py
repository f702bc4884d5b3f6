"""One file a method, one dict. The trainer knows `Method` and nothing else."""

from amvl_core.methods.amvl import Amvl
from amvl_core.methods.base import Clock, Method, StepOutput
from amvl_core.methods.pause import Pause
from amvl_core.methods.sft import Sft

METHODS: dict[str, type[Method]] = {"sft": Sft, "pause": Pause, "amvl": Amvl}

__all__ = ["METHODS", "Clock", "Method", "StepOutput"]
