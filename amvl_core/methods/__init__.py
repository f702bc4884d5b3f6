"""One package a method. The trainer knows `Method` (`method.py`) and nothing else."""
