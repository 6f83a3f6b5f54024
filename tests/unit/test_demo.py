# SPDX-License-Identifier: Apache-2.0
"""The demo's arithmetic and its reading of other programs' output. No root, no network."""

import json
import math
from pathlib import Path

import pytest
from attrs import evolve

from slimnet.demo.mode import MODES
from slimnet.demo.profile import Cost
from slimnet.demo.report import Median, Report, Row, Target, soak_json
from slimnet.demo.sample import Sample
from slimnet.demo.setting import Setting
from slimnet.demo.table import lines, number
from slimnet.demo.workloads import CHURNS, SOAKS, WORKLOADS

BY_NAME = {workload.name: workload for workload in WORKLOADS}
QUIET = {"client_us": 600, "server_us": 400, "machine_us": 1000, "steal_us": 0}
NOTHING = {"client": {}, "server": {}}
PRODUCED = """\
300000 records sent, 4246.765380 records/sec (0.41 MB/sec), 32593.16 ms avg latency, \
44230.00 ms max latency, 31523 ms 50th, 43093 ms 95th, 43282 ms 99th, 44229 ms 99.9th.
200000 steady state records sent, 3884.173933 records/sec (0.37 MB/sec), 36985.80 ms avg latency, \
44230.00 ms max latency, 38614 ms 50th, 43232 ms 95th, 43285 ms 99th, 44230 ms 99.9th.
"""


def sample(workload, mode, round_, value, *, cpu=1.0, **more):
    """As if 1000 operations had taken ``cpu`` microseconds each."""
    usage = {key: time * cpu for key, time in QUIET.items()} | {"counters": NOTHING}
    return evolve(Sample(workload, mode, round_, value, 1000, usage), **more)


def report(samples, **more):
    names = dict.fromkeys(each.workload for each in samples)
    machine = {"cpu": "x", "cpus": 2, "kernel": "6", "time": "now", "congestion_control": "cubic"}
    return Report(
        machine={**machine, "bpf_stats": False},
        setting={"churn": 2},
        modes={"host": "host mode", "vxlan": "VXLAN", "slimnet": "slimnet"},
        rows=[Row.of(BY_NAME[name], samples) for name in names if name in BY_NAME],
        soaks=[],
        churns=[],
        samples=samples,
        **more,
    )


@pytest.mark.parametrize(
    ("name", "said", "value", "operations"),
    [
        ("memcached", "Run time: 0.8s Ops: 149984 TPS: 183213 Net_rate: 205.0M/s", 183213, 149984),
        (
            "redis",
            (
                "\rGET: rps=0.0 (overall: -nan)\r====== GET ======\n"
                "  20000 requests completed in 0.13 seconds\n"
                "  throughput summary: 157480.31 requests per second\n"
            ),
            157480.31,
            20000,
        ),
        (
            "nginx",
            (
                "  2 threads and 32 connections\n  126500 requests in 1.00s, 50MB read\n"
                "Requests/sec: 126494.45\n"
            ),
            126494.45,
            126500,
        ),
        (
            "postgresql",
            (
                "number of transactions actually processed: 42001\n"
                "number of failed transactions: 0 (0.000%)\n"
                "tps = 42032.188535 (without initial connection time)\n"
            ),
            42032.188535,
            42001,
        ),
        (
            "iperf3",
            (
                '{"end": {"sum_sent": {"retransmits": 3},'
                ' "sum_received": {"bits_per_second": 17.5e9, "bytes": 2.2e9}}}'
            ),
            17.5,
            2.2,
        ),
        (
            "connect",
            '{"operations": 10, "seconds": 0.1, "failed": {}, "connect_us": {"p50": 9.5}}',
            9.5,
            10,
        ),
        (
            "connect-request-close",
            '{"operations": 10, "seconds": 0.1, "failed": {}, "connect_us": {"p50": 9.5}}',
            100,
            10,
        ),
        (
            "accept",
            '{"operations": 500, "seconds": 0.005, "failed": {}, "connect_us": {"p50": 9.5}}',
            100_000,
            500,
        ),
        ("kafka-produce", PRODUCED, 3884.173933, 300000),
        ("kafka-latency", PRODUCED, 36985.80, 300000),
        (
            "kafka-consume",
            (
                "start.time, end.time, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg,"
                " nMsg.sec, rebalance.time.ms, fetch.time.ms, fetch.MB.sec, fetch.nMsg.sec\n"
                "2026-11-28 14:37:48:359, 2026-11-28 14:37:57:654, 28.6520, 3.0825, 300438,"
                " 32322.5390, 5577, 3718, 7.7063, 80806.3475\n"
            ),
            80806.3475,
            300438,
        ),
    ],
)
def test_read(name, said, value, operations):
    """What each client prints is understood."""
    reading = BY_NAME[name].read(said)
    assert (reading.value, reading.operations) == (pytest.approx(value), pytest.approx(operations))


@pytest.mark.parametrize(
    ("name", "said", "wanted"),
    [
        ("nginx", "100 requests in 1s\nRequests/sec: 1\n  Socket errors: connect 3", "connect 3"),
        ("nginx", "unable to connect", "Requests/sec"),
        ("iperf3", '{"end": {}, "error": "error - control socket has closed"}', "has closed"),
        ("memcached", "", "TPS"),
        ("redis", "Could not connect", "throughput"),
        ("postgresql", "", "tps"),
        ("kafka-produce", "Exception in thread", "steady state"),
        ("kafka-consume", "Exception in thread", "figures"),
        (
            "postgresql",
            (
                "number of transactions actually processed: 1\n"
                "number of failed transactions: 2 (1%)\ntps = 1.0 (without initial connection time)"
            ),
            "failed transactions: 2",
        ),
        (
            "connect",
            '{"operations": 9, "seconds": 1, "failed": {"ECONNREFUSED": 1}}',
            "ECONNREFUSED",
        ),
    ],
)
def test_misread(name, said, wanted):
    """A client that failed half is no result."""
    with pytest.raises(ValueError, match=wanted):
        BY_NAME[name].read(said)


def test_churn_counts_failures():
    """That connections fail when ports run out is what the churn is there to show."""
    said = {"operations": 5, "seconds": 1, "failed": {"EADDRNOTAVAIL": 7}, "connect_us": {}}
    assert CHURNS[0].read(json.dumps(said)).detail["failed"] == {"EADDRNOTAVAIL": 7}


def test_median_ignores_failures():
    """A failed round's NaN does not become the median."""
    assert Median.of([3, math.nan, 1, 2]) == Median(2, 1, 3, 3)
    assert Median.of([math.nan]) is None


def test_ratio_is_of_medians_and_its_range_of_rounds():
    """Rounds are paired: a slow minute counts for both modes."""
    host = [sample("redis", "host", n, v) for n, v in enumerate((100, 200, 300), 1)]
    ours = [sample("redis", "slimnet", n, v) for n, v in enumerate((90, 200, 330), 1)]
    ratio = Row.of(BY_NAME["redis"], host + ours).ratios["slimnet"]
    assert ratio == Median(1.0, 0.9, pytest.approx(1.1), 3)


def test_processor_time_ratio_is_host_by_mode():
    """Twice the processor time is a ratio of a half."""
    samples = [sample("redis", "host", 1, 1), sample("redis", "slimnet", 1, 1, cpu=2)]
    assert Row.of(BY_NAME["redis"], samples).cpu_ratios["slimnet"].median == 0.5


def test_what_is_compared_and_how_long():
    """The promise of the first page, in numbers; less is ``--quick``."""
    targets = {workload.name: workload.target for workload in WORKLOADS}
    assert targets == {
        "iperf3": 0.97,
        "iperf3-10": 0.97,
        "request-response": 0.97,
        "connect-request-close": 0.95,
        "connect": 1.25,
        "accept": 0.97,
        "memcached": 0.97,
        "redis": 0.97,
        "nginx": 0.97,
        "nginx-close": 0.95,
        "postgresql": 0.97,
        "kafka-produce": 0.97,
        "kafka-latency": 1.03,
        "kafka-consume": 0.97,
    }
    rates = [each for each in WORKLOADS if each.higher_is_better]
    assert {each.cpu_target for each in rates} == {0.97, None}
    assert [each.name for each in rates if each.cpu_target is None] == ["accept"]
    assert [mode.name for mode in MODES if mode.usual] == ["host", "vxlan", "slimnet"]
    setting = Setting(Path("/nowhere"))
    assert setting.rounds >= 3
    assert setting.soak == 200_000
    assert setting.churn == 60


@pytest.mark.parametrize(
    ("at_least", "limit", "met", "within"),
    [
        (True, 0.97, False, True),
        (True, 0.95, True, False),
        (True, 1.01, False, False),
        (False, 0.97, True, False),
        (False, 0.95, False, True),
    ],
)
def test_target(at_least, limit, met, within):
    """The median decides; the range only says whether more rounds would tell."""
    target = Target.of("x", Median(0.96, 0.9, 1.0, 5), limit, at_least=at_least)
    assert (target.met, target.within) == (met, within)


def test_targets_of_a_time():
    """connect() may take 1.25 times host mode's, no longer than over VXLAN, and has no
    processor time to reach."""
    values = {"host": 10, "vxlan": 12, "slimnet": 12.5}
    samples = [sample("connect", mode, 1, value) for mode, value in values.items()]
    targets = Row.of(BY_NAME["connect"], samples).targets()
    assert [(target.wanted, target.met) for target in targets] == [
        ("<= 1.25", True),
        ("<= 1.00", False),
    ]


def test_targets_of_the_kernel_module():
    """Where it is measured it has limits of its own: 0.95 of a rate, 1.4 times a time."""
    rates = [sample("redis", "host", 1, 100), sample("redis", "kmod", 1, 96, cpu=1.1)]
    targets = Row.of(BY_NAME["redis"], rates).targets()
    assert [(target.wanted, target.met) for target in targets] == [
        (">= 0.95", True),
        (">= 0.95", False),
    ]
    times = [sample("connect", "host", 1, 10), sample("connect", "kmod", 1, 14.5)]
    (target,) = Row.of(BY_NAME["connect"], times).targets()
    assert (target.wanted, target.met) == ("<= 1.40", False)


def test_failure_is_reported():
    """A failed measurement is told, is null in JSON, and leaves the rest as it is."""
    good = [sample("redis", mode, 1, 100) for mode in ("host", "slimnet")]
    bad = sample("redis", "vxlan", 1, math.nan, error="redis-benchmark: exit status 1: no")
    found = report([*good, bad])
    assert found.failures == [bad]
    text = "\n".join(lines(found))
    assert "FAILED: redis, vxlan, round 1: redis-benchmark: exit status 1: no" in text
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [each["value"] for each in plain["samples"]] == [100, 100, None]
    assert [target["met"] for target in plain["targets"]] == [True, True]


def test_noise():
    """Busy time that is nobody's of the demo: above 15 per cent it is warned of."""
    busy = sample("redis", "host", 1, 100)
    noisy = evolve(busy, usage={**busy.usage, "machine_us": 2000})
    assert report([busy]).noise == 0
    assert report([noisy]).noise == 0.5
    assert any("not quiet" in line for line in lines(report([noisy])))
    assert not any("not quiet" in line for line in lines(report([busy])))


@pytest.mark.parametrize(
    ("detail", "counters", "met"),
    [
        ({}, {}, True),
        ({"slow_connects": 1}, {}, False),
        ({"failed": {"ETIMEDOUT": 1}}, {}, False),
        ({}, {"TCPSynRetrans": 1}, False),
        ({}, {"TCPTimeWaitOverflow": 1}, True),
    ],
)
def test_soak(detail, counters, met):
    """One slow, one failed or one retransmitted connection is one too many."""
    said = {"seconds": 1, "slow_connects": 0, "failed": {}, "connect_us": {"max": 5}, **detail}
    one = sample(SOAKS[0].name, "slimnet", 1, 100, detail=said)
    one = evolve(one, usage={**one.usage, "counters": {"client": {}, "server": counters}})
    assert soak_json(one)["met"] is met


def test_small_costs_are_left_out():
    """A program below one per cent of a workload's cost is in the JSON only."""
    costs = [Cost("redis", "slim_big", 1, 1000), Cost("redis", "slim_small", 1, 5)]
    found = report([sample("redis", "slimnet", 1, 100)], costs=costs)
    text = "\n".join(lines(found))
    assert "slim_big" in text
    assert "slim_small" not in text
    assert [cost["program"] for cost in found.to_json()["costs"]] == ["slim_big", "slim_small"]


def test_number():
    """Three figures, thousands apart."""
    assert [number(value) for value in (0.01234, 17.54, 99.9, 123456.7)] == [
        "0.0123",
        "17.5",
        "99.9",
        "123,457",
    ]
