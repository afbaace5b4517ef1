from __future__ import annotations

import time
from pathlib import Path

import pytest

from brd_edge.runtime.power import measure_energy


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_no_rails_no_energy_and_no_work(tmp_path: Path) -> None:
    def work() -> None:
        pytest.fail("there is nothing to measure")

    assert measure_energy(work, system=tmp_path) is None


@pytest.mark.parametrize(("before", "after", "joules"), [(5_000_000, 7_500_000, 2.5), (9_000_000, 500_000, 1.5)])
def test_rapl_counts_also_across_its_limit(tmp_path: Path, before: int, after: int, joules: float) -> None:
    package = tmp_path / "powercap" / "intel-rapl:0"
    _write(package / "energy_uj", str(before))
    _write(package / "max_energy_range_uj", "10000000")
    found = measure_energy(lambda: _write(package / "energy_uj", str(after)), system=tmp_path)
    assert found is not None
    assert found.joules == pytest.approx(joules)


def test_jetson_rails_are_sampled(tmp_path: Path) -> None:
    chip = tmp_path / "hwmon" / "hwmon3"
    _write(chip / "name", "ina3221")
    for number, label, millivolts, milliamperes in ((1, "VDD_IN", 5000, 2000), (2, "VDD_CPU", 1000, 9000)):
        _write(chip / f"in{number}_label", label)
        _write(chip / f"in{number}_input", str(millivolts))
        _write(chip / f"curr{number}_input", str(milliamperes))
    found = measure_energy(lambda: time.sleep(0.2), system=tmp_path)
    assert found is not None
    # the module's input is 5 V x 2 A = 10 W; the processor's rail is part of it
    assert found.joules == pytest.approx(2.0, rel=0.3)
    assert "1 rails" in found.source


def test_rails_that_are_parts_of_others_count_once(tmp_path: Path) -> None:
    """AGX Orin: no rail is the whole, and the memory's is fed by the 5 V one."""
    rails = {
        "hwmon1": (("VDD_GPU_SOC", 15_000, 2000), ("VDD_CPU_CV", 5000, 1000), ("VIN_SYS_5V0", 5000, 1000)),
        "hwmon2": (("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 400), ("NC", 0, 0)),
    }
    for chip, found in rails.items():
        _write(tmp_path / "hwmon" / chip / "name", "ina3221")
        for number, (label, millivolts, milliamperes) in enumerate(found, 1):
            _write(tmp_path / "hwmon" / chip / f"in{number}_label", label)
            _write(tmp_path / "hwmon" / chip / f"in{number}_input", str(millivolts))
            _write(tmp_path / "hwmon" / chip / f"curr{number}_input", str(milliamperes))
    energy = measure_energy(lambda: time.sleep(0.2), system=tmp_path)
    assert energy is not None
    # 30 W + 5 W + 5 W
    assert energy.joules == pytest.approx(8.0, rel=0.3)
