"""Says at the end of a run how much of the CUDA backend the emulator has run."""

PREFIX = "tests/test_emulator.py::test_every_kernel_against_the_formulas["


def pytest_terminal_summary(terminalreporter):
    ran = [report for report in terminalreporter.stats.get("passed", []) if report.nodeid.startswith(PREFIX)]
    if ran:
        count = f"{2 * len(ran)} cases of CUDA kernel x cell x dtype ({len(ran)} forward, {len(ran)} backward)"
        terminalreporter.write_line(f"emulator: {count} ran on the CPU and agree with the formulas")
