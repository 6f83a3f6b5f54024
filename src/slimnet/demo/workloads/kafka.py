# SPDX-License-Identifier: Apache-2.0
"""Stream processing: a Kafka broker (KRaft, one node) under Kafka's own performance tests.

The jars come from Maven Central, through ``mvn`` and its cache, when one of these
workloads was named. Each Java process has one processor, as everything else here has;
processor time includes its start and its compiler's, so the tests are long enough for
records to be most of it.
"""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from slimnet.demo.setting import Setting
from slimnet.demo.workload import ANY, USER, Reading, Workload
from slimnet.exceptions import CapabilityMissing

__all__ = ["KafkaConsume", "KafkaLatency", "KafkaProduce"]

_POM = Path(__file__).parents[1] / "programs" / "kafka" / "pom.xml"
_RECORD_BYTES = 100
_FETCH_SECONDS = 600
_FILL_SECONDS = 300

_PRODUCER = "org.apache.kafka.tools.ProducerPerformance"
_SENT = re.compile(r"^(\d+) records sent, .* 99\.9th\.$", re.MULTILINE)
_STEADY = re.compile(
    r"^\d+ steady state records sent, ([\d.]+) records/sec .*?, ([\d.]+) ms avg latency",
    re.MULTILINE,
)

# The controller is the broker's own: it stays on its loopback.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:9093
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{any}:{port},CONTROLLER://127.0.0.1:9093
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
log.dirs={data}
offsets.topic.replication.factor=1
group.initial.rebalance.delay.ms=0
# What producers wrote in earlier rounds goes; what consumers read is less than that.
log.segment.bytes=67108864
log.retention.bytes=1073741824
log.retention.check.interval.ms=1000
"""

# In a network namespace of its own, for the machine may have a broker on its loopback. What
# ends the shell ends the broker.
_FILL = """\
ip link set lo up
exec setpriv --reuid={user} --clear-groups sh -ec '
setpriv --pdeathsig KILL "$@" -Xmx512m kafka.Kafka {properties} >{log} 2>&1 &
"$@" {producer} --bootstrap-server 127.0.0.1:{port} --topic consume \
    --num-records {records} --record-size {bytes} --throughput -1
kill $!
wait $! || [ $? = 143 ]
' sh "$@"
"""


class _Kafka(Workload):
    operation = "record"
    target = 0.97
    needs: ClassVar[Mapping[str, str]] = {
        "java": "default-jre-headless",
        "mvn": "maven",
        "setpriv": "util-linux",
        "unshare": "util-linux",
    }
    port = 9092
    # The broker tells its clients where to connect.
    told = ("--override", f"advertised.listeners=PLAINTEXT://{{address}}:{port}")
    group = "kafka"

    def prepare(self, setting: Setting) -> None:
        """See :meth:`.Workload.prepare`."""
        properties = _properties(setting)
        if properties.exists():
            return  # one broker serves all that are chosen
        fetch = ["mvn", "--quiet", "--batch-mode", "--file", _POM, "dependency:copy-dependencies"]
        _run(*fetch, f"-DoutputDirectory={_jars(setting)}", timeout=_FETCH_SECONDS)
        data = setting.scratch / "kafka"
        properties.write_text(_PROPERTIES.format(any=ANY, port=self.port, data=data))
        tool = [*_java(setting), "kafka.tools.StorageTool"]
        cluster = _run(*tool, "random-uuid").strip()
        _run(*tool, "format", "--cluster-id", cluster, "--config", properties, user=USER)

    def server(self, setting: Setting) -> Sequence[str]:
        """See :meth:`.Workload.server`."""
        heap = ("-Xms512m", "-Xmx512m")
        return setting.as_server(*_java(setting), *heap, "kafka.Kafka", _properties(setting))

    def limit(self, setting: Setting) -> float:
        """See :meth:`.Workload.limit`."""
        return 120.0 + 20 * setting.seconds

    def produce(
        self, setting: Setting, address: str, *, warm_up: int, records: int, rate: int
    ) -> Sequence[str]:
        """The producer's command line.

        Args:
            setting: how long and how often.
            address: the broker's.
            warm_up: how many records do not count.
            records: how many do.
            rate: records a second; -1: as many as it can.
        """
        return setting.as_client(
            *(*_java(setting), _PRODUCER, "--bootstrap-server", f"{address}:{self.port}"),
            *("--topic", "produce", "--record-size", _RECORD_BYTES, "--throughput", rate),
            *("--warmup-records", warm_up, "--num-records", warm_up + records),
        )


class KafkaProduce(_Kafka):
    """Records of 100 bytes, as many as the producer can send."""

    name = "kafka-produce"
    title = "Kafka, produce"
    unit = "records/s"

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.client`."""
        records = 10 * setting.requests
        return self.produce(setting, address, warm_up=records // 4, records=records, rate=-1)

    def read(self, output: str) -> Reading:
        """See :meth:`.Workload.read`."""
        sent, rate, latency = _produced(output)
        return Reading(value=rate, operations=sent, detail={"latency_ms": latency})


class KafkaLatency(_Kafka):
    """Records of 100 bytes, 2,000 a second: how long until the broker has acknowledged one."""

    name = "kafka-latency"
    title = "Kafka, latency at 2,000 records/s"
    unit = "ms"
    higher_is_better = False
    target = 1.03
    cpu_target = None
    rate: ClassVar[int] = 2000

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.client`."""
        warm_up = 3 * self.rate
        records = self.rate * setting.seconds
        return self.produce(setting, address, warm_up=warm_up, records=records, rate=self.rate)

    def read(self, output: str) -> Reading:
        """See :meth:`.Workload.read`."""
        sent, rate, latency = _produced(output)
        return Reading(value=latency, operations=sent, detail={"records_per_second": rate})


class KafkaConsume(_Kafka):
    """Records of 100 bytes, as many as the consumer can fetch."""

    name = "kafka-consume"
    title = "Kafka, consume"
    unit = "records/s"

    def prepare(self, setting: Setting) -> None:
        """See :meth:`.Workload.prepare`."""
        super().prepare(setting)
        script = _FILL.format(
            user=USER,
            properties=_properties(setting),
            log=setting.scratch / "kafka-fill.log",
            producer=_PRODUCER,
            port=self.port,
            records=10 * setting.requests,
            bytes=_RECORD_BYTES,
        )
        fill = ["unshare", "--net", "sh", "-ec", script, "sh", *_java(setting)]
        _run(*fill, timeout=_FILL_SECONDS)

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.client`."""
        return setting.as_client(
            *(*_java(setting), "org.apache.kafka.tools.ConsumerPerformance"),
            *("--bootstrap-server", f"{address}:{self.port}", "--topic", "consume"),
            *("--num-records", 10 * setting.requests, "--timeout", 60_000),
        )

    def read(self, output: str) -> Reading:
        """See :meth:`.Workload.read`."""
        lines = output.splitlines()
        start = next((n for n, line in enumerate(lines) if line.startswith("start.time")), None)
        if start is None:
            raise ValueError("the consumer printed no line of figures")
        header, figures = csv.reader(lines[start : start + 2], skipinitialspace=True)
        said = dict(zip(header, figures, strict=True))
        return Reading(
            # Without the time that joining the group takes.
            value=float(said["fetch.nMsg.sec"]),
            operations=float(said["data.consumed.in.nMsg"]),
            detail={"rebalance_ms": float(said["rebalance.time.ms"])},
        )


def _jars(setting: Setting) -> Path:
    return setting.directory / "kafka"


def _properties(setting: Setting) -> Path:
    return setting.directory / "kafka.properties"


def _java(setting: Setting) -> list[str]:
    # Its logger is chosen by what is in the class path: none is, so it says nothing.
    return ["java", "-XX:-UsePerfData", "-cp", f"{_jars(setting)}/*"]


def _produced(output: str) -> tuple[float, float, float]:
    """How many records in all; after the warm-up, records a second and their mean
    latency in milliseconds."""
    sent, steady = _SENT.search(output), _STEADY.search(output)
    if not sent or not steady:
        raise ValueError("the producer printed no '... steady state records sent'")
    return float(sent[1]), float(steady[1]), float(steady[2])


def _run(*argv: object, timeout: float = 60.0, user: str | None = None) -> str:
    """Standard output.

    Raises:
        CapabilityMissing: it failed; for ``mvn``, most likely because Maven Central does not
            answer.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            user=user,
            extra_groups=None if user is None else [],
        )
    except subprocess.TimeoutExpired:
        raise CapabilityMissing(f"kafka: {words[0]}: not done after {timeout:.0f} s") from None
    except subprocess.CalledProcessError as error:
        said = [*error.stdout.splitlines(), *error.stderr.splitlines(), ""]
        raise CapabilityMissing(f"kafka: {words[0]}: {said[0]}") from error
    return done.stdout
