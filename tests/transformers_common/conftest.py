"""Registers the marks of transformers' own tests, which pytest would refuse here as unknown."""

import pytest

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
