"""Says at the end of a run how much of the compiled PTX has run."""


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.stats.get("passed", []):
        for name, text in report.user_properties:
            if name == "ptx":
                terminalreporter.write_line(f"ptx: {text}")
