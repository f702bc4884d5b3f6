"""No thread of Arrow's may touch Python's file objects: where the interpreter ends meanwhile, the process aborts."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

READ = """
import sys
from pathlib import Path
import pyarrow.parquet as pq
from amvl_core.contracts.parquet import ParquetStream

def threads():
    return len(list(Path("/proc/self/task").iterdir()))

before = threads()
with open(sys.argv[1], "rb") as file:
    stored = ParquetStream(file)
    assert stored.read(["a", "b"]).column_names == ["a", "b"]
    assert stored.read_row_group(1, ["b"]).num_rows == 10
    assert sum(batch.num_rows for batch in stored.iter_batches(4)) == 40
assert ParquetStream(Path(sys.argv[1]).read_bytes()).read().num_rows == 40
print(threads() - before)
with open(sys.argv[1], "rb") as file:
    pq.ParquetFile(file).read()
print(threads() - before > 0)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_a_stream_is_read_in_the_thread_that_calls(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    pq.write_table(pa.table({"a": range(40), "b": range(40)}), file, row_group_size=10)
    done = subprocess.run([sys.executable, "-c", READ, str(file)], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "True"], done.stderr  # Arrow's own way starts some
