"""The catalogue, and how devices are wired."""

import math

import pytest

from windlass.core.errors import NotFound, UsageError
from windlass.core.program import ITEM_BYTES
from windlass.sim.cluster import ClusterSpec, Link, NoPath, endpoint
from windlass.sim.hardware import Tier, UnknownDevice, catalogue, devices, fabric, hardware


def test_every_row_has_a_source_and_sane_numbers():
    assert len(devices()) == len(catalogue()["device"])
    for spec in devices():
        assert spec.source and isinstance(spec.verified, bool)
        assert set(spec.flops) <= set(ITEM_BYTES)
        assert 0 < spec.idle_w < spec.tdp_w
        assert all(a.read_bw >= b.read_bw for a, b in zip(spec.tiers, spec.tiers[1:], strict=False))
        assert spec.freq_mhz is None or spec.freq_mhz == tuple(sorted(spec.freq_mhz))
        efficiency = spec.efficiency
        for part in (efficiency.compute, efficiency.memory, efficiency.attention_memory, efficiency.elementwise_memory):
            assert 0 < part <= 1
        assert efficiency.p >= 1 and 0 <= efficiency.quantised <= 1 and 0 < efficiency.error < 1


def test_every_fabric_and_collective_says_where_it_comes_from():
    for row in catalogue()["fabric"]:
        assert fabric(row["name"]).source
    for row in catalogue()["collective"]:
        assert row["source"] and 0 < row["error"] < 0.25


@pytest.mark.parametrize(
    ("name", "bf16", "bandwidth"),
    [("H100", 989e12, 3350e9), ("a100", 312e12, 2039e9), ("RTX4090", 165.2e12, 1008e9), ("h200-sxm", 989e12, 4800e9)],
)
def test_published_numbers(name, bf16, bandwidth):
    spec = hardware(name)
    assert (spec.flops["bf16"], spec.mem_bw) == (bf16, bandwidth)


def test_an_unknown_device_names_the_nearest():
    with pytest.raises(UnknownDevice, match="H100") as caught:
        hardware("H10O")
    assert any("H100" in name for name in caught.value.nearest)
    with pytest.raises(NotFound, match="nvlink3"):
        fabric("nvlink33")


def test_a_type_the_device_lacks_runs_wider_or_is_refused():
    v100 = hardware("V100")
    assert v100.peak("bf16") == v100.flops["fp16"]
    assert hardware("A100").peak("fp8") == 312e12
    with pytest.raises(UsageError, match="P4 does not compute in fp64"):
        hardware("P4").peak("fp64")


@pytest.mark.parametrize("field", ["capacity", "read_bw", "write_bw"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_a_tier_names_the_field_that_is_wrong(field, value):
    good = {"capacity": 1, "read_bw": 1.0, "write_bw": 1.0}
    with pytest.raises(UsageError, match=field.replace("_", " ")):
        Tier("ram", **{**good, field: value})


def test_a_link_without_bandwidth_is_refused():
    with pytest.raises(UsageError, match="bandwidth"):
        Link("a", "b", 0.0, 0.0)


def test_paths_have_the_fewest_links_and_lead_onward():
    laptop, wire = hardware("laptop"), fabric("gige")
    ring = ClusterSpec.ring(laptop, 6, wire)
    for src in range(6):
        for dst in range(6):
            path = ring.path(src, dst)
            assert len(path) == min((dst - src) % 6, (src - dst) % 6)
            ends = [endpoint(src), *(link.dst for link in path)]
            assert [link.src for link in path] == ends[:-1]
            assert ends[-1] == endpoint(dst)
    assert len(ClusterSpec.mesh(laptop, 5, wire).links) == 10
    switch = ClusterSpec.switch(laptop, 4, wire)
    assert switch.latency(0, 3) == pytest.approx(wire.latency)
    assert switch.bandwidth(0, 3) == wire.bandwidth


def test_what_is_not_connected_has_no_path():
    with pytest.raises(NoPath, match="d0 to d1"):
        ClusterSpec((hardware("laptop"),) * 2).path(0, 1)


def test_parse_makes_machines_cards_and_a_way_between_clusters():
    cluster = ClusterSpec.parse("3x8xA100-IB + 1x8xRTX4090-ETH100")
    assert len(cluster.devices) == 32
    assert [len(node.devices) for node in cluster.nodes] == [8] * 4
    assert cluster.devices[0].name == "A100-SXM" and cluster.devices[31].name == "RTX4090"
    assert cluster.nodes[0].nic.kind == "ib" and cluster.nodes[3].nic.bandwidth == 12.5e9
    assert cluster.bandwidth(0, 7) == hardware("A100").link.bandwidth
    assert cluster.bandwidth(0, 8) == fabric("ib400").bandwidth
    assert cluster.bandwidth(0, 31) == 12.5e9


@pytest.mark.parametrize("text", ["", "8xA100", "0x8xA100", "2x8xA100-TOKENRING", "2x8x"])
def test_parse_refuses_what_is_no_cluster(text):
    with pytest.raises(UsageError):
        ClusterSpec.parse(text)


def test_toml_round_trip_and_its_faults(tmp_path):
    path = tmp_path / "cluster.toml"
    path.write_text(
        '[[cluster]]\nname = "big"\nnodes = 2\ndevices_per_node = 4\ndevice = "A100"\nnic = "ib"\nnic_gbps = 200\n'
        'hca = "mlx5_0"\n[[cluster]]\nname = "small"\ndevice = "RTX4090"\n'
        '[[link]]\na = "big"\nb = "small"\ngbps = 10\nlatency_us = 50\n'
    )
    cluster = ClusterSpec.from_toml(path)
    assert len(cluster.devices) == 9
    assert cluster.nodes[0].nic.hca == "mlx5_0"
    assert cluster.bandwidth(0, 4) == 25e9
    assert cluster.bandwidth(0, 8) == min(10e9 / 8, fabric("gige").bandwidth)
    for text, message in (
        ("[[cluster]]\nnodes = 2\n", "device is missing"),
        ('[[cluster]]\ndevice = "A100"\ncolour = 1\n', "unknown field colour"),
        ('[[cluster]]\ndevice = "A100"\nnodes = 0\n', "nodes is 0"),
        ('[[cluster]]\ndevice = "A100"\nnic = "string"\n', "unknown nic"),
        ("x = 1\n", r"no \[\[cluster\]\]"),
        ("[[[", "not TOML"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            ClusterSpec.from_toml(path)
    with pytest.raises(UsageError, match="cannot read"):
        ClusterSpec.from_toml(tmp_path / "missing.toml")
