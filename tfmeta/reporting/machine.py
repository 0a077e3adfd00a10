"""What a report was measured with and on."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

_GIB = 2**30


def machine() -> dict[str, str]:
    """Return processor, cores, memory, accelerators, versions and date, by name.

    Nothing in it names the machine or its user.

    Example:
        >>> machine()["keras"]
        '3.11.0'
    """
    found = {"processor": _processor(), "cores": _cores(), "memory": _memory()}
    # Of the devices that TensorFlow has, the first is a name of its own for the processor.
    devices = [
        device for device in tf.config.list_physical_devices() if device.device_type != "CPU"
    ]
    names = [
        tf.config.experimental.get_device_details(device).get("device_name", device.device_type)
        for device in devices
    ]
    return {
        **found,
        "accelerators": ", ".join(names) or "none",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "NumPy": np.__version__,
        # Not imported, for this is a part of it.
        "tfmeta": sys.modules["tfmeta"].__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _cores() -> str:
    there = os.cpu_count() or 1
    # Of a process that was given some of them only.
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    return str(there) if mine == there else f"{mine} of {there}"


def _memory() -> str:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return f"{size / _GIB:.1f} GiB"
    return "unknown"
