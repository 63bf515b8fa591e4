"""The fetch benchmark's figures as a table."""

from typing import Any


def print_table(result: dict[str, Any]) -> None:
    """Print the figures as Markdown, median [min-max]."""
    print(
        f"{result['runs']} runs on {result['cores']} cores, median [min-max]; {result['server']}; connections: ours "
        f"{result['connections']['ours']} (128 where named so), img2dataset {result['connections']['peer']}; memory is "
        "the largest sum of PSS of all processes; others: cores that the rest of the machine took\n"
    )
    print("| | files/s | after start-up | start-up s | CPU ms/file | server's CPU | others | peak MB | failed |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, workload in result["workloads"].items():
        print(f"| **{name}: {workload['files']} x {workload['description']}** | | | | | | | | |")
        print(_row("ours", workload["ours"]))
        print(_row("img2dataset", workload["peer"]) if "peer" in workload else _NOT_MEASURED)
        if ratio := workload.get("ours_to_peer"):
            speed, later, cpu, memory = ("" if value is None else f"{value:.2f}" for value in ratio.values())
            print(f"| ours / img2dataset | {speed} | {later} | | {cpu} | | | {memory} | |")
        _print_limits(workload)


def _print_limits(workload: dict[str, Any]) -> None:
    limits = workload["limits"]
    for name, shown in (("download", "limit: download alone"), ("decode_per_core", "limit: decode, one core")):
        if f"{name}_files_per_s" in limits:
            speed, cpu = _cell(limits[f"{name}_files_per_s"]), _cell(limits[f"{name}_cpu_ms_per_file"])
            print(f"| {shown} | | {speed} | | {cpu} | | | | |")
    for side, bound in workload.get("bound", {}).items():
        if side in workload:
            speed = workload[side]["files_per_s_after_start"]
            reached = f" (reached: {speed[0] / bound:.0%})" if speed else ""
            print(f"| bound of {side}: connections / latency | | {bound:.1f}{reached} | | | | | | |")


_NOT_MEASURED = "| img2dataset | not measured" + " |" * 8
_COLUMNS = (
    "files_per_s", "files_per_s_after_start", "start_s", "cpu_ms_per_file", "server_cpu_ms_per_file",
    "cores_taken_by_others", "peak_pss_mb", "failed",
)  # fmt: skip


def _row(name: str, figures: dict[str, list[float] | None]) -> str:
    return f"| {name} | " + " | ".join(_cell(figures[column]) for column in _COLUMNS) + " |"


def _cell(spread: list[float] | None) -> str:
    if spread is None:
        return ""
    median, low, high = (f"{value:.{1 if value % 1 and abs(value) < 1000 else 0}f}" for value in spread)
    return median if low == high else f"{median} [{low}-{high}]"
