"""Says at the end of a run how much of the CUDA backend the emulator has run."""

PREFIXES = tuple(f"tests/test_{name}.py::test_every_kernel_against_the_formulas[" for name in ("emulator", "resident"))


def pytest_terminal_summary(terminalreporter):
    ran = [report for report in terminalreporter.stats.get("passed", []) if report.nodeid.startswith(PREFIXES)]
    if ran:
        count = f"{2 * len(ran)} cases of CUDA kernel x cell x dtype ({len(ran)} forward, {len(ran)} backward)"
        terminalreporter.write_line(f"emulator: {count} ran on the CPU and agree with the formulas")
