"""Says at the end of a run how much of the CUDA backend the emulator has run."""

FORMULAS = "tests/emulator/test_emulator.py::test_every_kernel_against_the_formulas["
CAPTURED = "tests/emulator/test_capture.py::test_every_kernel["


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.stats.get("passed", []):
        for name, text in report.user_properties:
            if name == "ptx":
                terminalreporter.write_line(f"ptx: {text}")
    passed = [report.nodeid for report in terminalreporter.stats.get("passed", [])]
    ran = sum(name.startswith(FORMULAS) for name in passed)
    if ran:
        count = f"{2 * ran} cases of CUDA kernel x cell x dtype ({ran} forward, {ran} backward)"
        terminalreporter.write_line(f"emulator: {count} ran on the CPU and agree with the formulas")
    captured = sum(name.startswith(CAPTURED) for name in passed)
    if captured:
        count = f"{captured} cases of CUDA kernel x cell x dtype, forward and backward"
        terminalreporter.write_line(f"emulator: {count}, captured and replayed on other inputs: the same bits")
