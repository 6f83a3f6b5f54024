# SPDX-License-Identifier: Apache-2.0
"""The demo's workloads, in the order of the report."""

from __future__ import annotations

from slimnet.demo.workload import Workload
from slimnet.demo.workloads.iperf import Iperf, IperfTen
from slimnet.demo.workloads.kafka import KafkaConsume, KafkaLatency, KafkaProduce
from slimnet.demo.workloads.load import (
    Accept,
    Churn,
    Connect,
    ConnectRequestClose,
    RequestResponse,
    Soak,
)
from slimnet.demo.workloads.memcached import Memcached
from slimnet.demo.workloads.nginx import NginxClose, NginxKeepAlive
from slimnet.demo.workloads.postgresql import PostgreSQL
from slimnet.demo.workloads.redis import Redis

__all__ = ["CHURNS", "SOAKS", "WORKLOADS"]

#: One of each, in the order of the report.
WORKLOADS: tuple[Workload, ...] = (
    Iperf(),
    IperfTen(),
    RequestResponse(),
    ConnectRequestClose(),
    Connect(),
    Accept(),
    Memcached(),
    Redis(),
    NginxKeepAlive(),
    NginxClose(),
    PostgreSQL(),
    KafkaProduce(),
    KafkaLatency(),
    KafkaConsume(),
)

#: Connections to one service at full speed, in both orders of closing.
CHURNS = (Churn("client", 7004), Churn("server", 7005))

#: A number of connections in a row, in both orders of closing.
SOAKS = (Soak("client", 7006), Soak("server", 7007))
