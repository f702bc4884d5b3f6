"""Their tests are collected where a checkout is named; their marks are registered, which pytest would refuse here."""

import os

import pytest

VARIABLE = "AMVL_TRANSFORMERS_TESTS"
collect_ignore_glob = [] if os.environ.get(VARIABLE) else ["test_*.py"]

MARKS = (
    "accelerate_tests",
    "executorch_export_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_test",
    "all_flash_attn_test",
    "generate",
    "onnx_export_test",
    "slow",
    "torch_compile_test",
    "torch_export_test",
)


def pytest_configure(config: pytest.Config) -> None:
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers' own tests")
