"""The captioning benchmark's figures as a table."""

from typing import Any


def print_setting(result: dict[str, Any]) -> None:
    """Print on what was measured, and what was asked for."""
    machine, load = result["machine"], result["load"]
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    model = result["model"]
    print(f"{model['name']}, {model['parameters'] / 1e6:,.1f} M parameters in {model['dtype']}")
    print(
        f"prompts of {load['prompt_words']:.1f} words, {load['prompt_tokens']:.1f} tokens on average, with "
        f"{load['image_tokens']} more for the picture; captions of {load['caption_tokens']:.1f} tokens on average, "
        f"{load['longest']} at most; {load['pictures']} different pictures"
    )
    ceilings = result["ceilings"]
    print(
        f"ceilings: {ceilings['flops'] / 1e12:.1f} TFLOP/s in a matrix product, "
        f"{ceilings['bandwidth'] / 1e9:.0f} GB/s in a copy\n",
        flush=True,
    )


def print_rows(result: dict[str, Any]) -> None:
    """Print the table, and the bounds that the shares are of."""
    print("\n| | at once | images/s | tokens/s | peak GPU memory, GB | ms per image by phase | share of serial bound |")
    print("|---|---|---|---|---|---|---|")
    bounds = result["bounds"]
    for row in result["rows"]:
        print(row_line(row, bounds["serial"]))
    print(
        f"\nbounds for {bounds['slots']} slots: {_figure(bounds['serial'])} images/s serial, "
        f"{_figure(bounds['overlap'])} with perfect overlap (vision {1000 * bounds['vision_s']:.2f} ms, prefill "
        f"{1000 * bounds['prefill_s']:.2f} ms, decode {1000 * bounds['decode_s']:.2f} ms an image; a step takes "
        f"{1000 * bounds['step_s']:.2f} ms)"
    )
    for line in _ratios(result["rows"]):
        print(line)
    print(flush=True)


def row_line(row: dict[str, Any], serial: float | None) -> str:
    """Return one row; its share needs the serial bound in images/s."""
    if row["fault"]:
        return f"| {row['shown']} | failed: {row['fault']} | | | | | |"
    peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f}"
    share = "" if serial is None else f"{row['images_per_s'] / serial:.0%}"
    return (
        f"| {row['shown']} | {row['at_once']} | {_figure(row['images_per_s'])} | {row['tokens_per_s']:.0f} | {peak} | "
        f"{_phases(row)} | {share} |"
    )


def _phases(row: dict[str, Any]) -> str:
    per_image = {name: 1000 * value / row["captions"] for name, value in row["phases"].items()}
    rest = 1000 * row["seconds"] / row["captions"] - sum(per_image.values())
    # Negative where phases overlap: then there is no rest to speak of.
    return ", ".join(f"{name} {_figure(value)}" for name, value in (per_image | {"rest": max(0.0, rest)}).items())


def _ratios(rows: list[dict[str, Any]]) -> list[str]:
    speed = {row["name"]: row["images_per_s"] for row in rows if not row["fault"]}
    generate = {name: value for name, value in speed.items() if name not in ("slots", "one")}
    lines = []
    if "slots" in speed and speed.get("one"):
        lines.append(f"slot engine / plain script: {speed['slots'] / speed['one']:.1f}")
    if "slots" in speed and generate:
        best = max(generate, key=lambda name: generate[name])
        lines.append(f"slot engine / best generate() row ({best}): {speed['slots'] / generate[best]:.1f}")
    return lines


def print_checks(checks: dict[str, Any]) -> None:
    """Print what was checked beside the speed."""
    for name, check in checks.items():
        print(f"{name}: {check['fault'] if 'fault' in check else _CHECKS[name](check)}", flush=True)


def _tokens(check: dict[str, Any]) -> str:
    return "; ".join(
        f"{name}: {one['equal']} of {one['items']} equal to generate() one by one, {one['excused']} differ after a "
        f"near tie"
        + (f" (margins in eps: {', '.join(f'{margin:.1f}' for margin in one['margins'])})" if one["margins"] else "")
        + f": {'holds' if one['holds'] else 'DOES NOT HOLD'}"
        for name, one in check.items()
    )


def _soak(check: dict[str, Any]) -> str:
    return (
        f"{check['captions']} captions, {check['failures']} failures in {check['seconds']:.0f} s "
        f"({_figure(check['captions'] / check['seconds'])} images/s, fill and end included); "
        f"memory grew by a factor of {check['growth']:.3f} from the second sixth on"
    )


def _squeeze(check: dict[str, Any]) -> str:
    return (
        f"{check['captions']} of {check['asked']} captions with {check['cap_bytes'] / 1e9:.1f} GB allowed, "
        f"{check['failures']} failures, {check['slots']} slots at the end"
    )


def _device(check: dict[str, Any]) -> str:
    return "".join(f"\n  {one['verdict']:<5} {one['name']}: {one['detail']}" for one in check["found"])


_CHECKS = {
    "device": _device,
    "kernel cases": _device,
    "tokens": _tokens,
    "tokens, penalised": _tokens,
    "soak": _soak,
    "memory cap": _squeeze,
}


def _figure(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
