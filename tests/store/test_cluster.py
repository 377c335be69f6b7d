"""The PostgreSQL cluster that tests run on does what it says, also when it is killed."""

import signal

import pytest

from tests.harness.cluster import Cluster, cluster, standby_of


@pytest.mark.needs("initdb")
def test_what_a_killed_primary_had_replicated_is_on_the_promoted_standby() -> None:
    with cluster() as primary, standby_of(primary) as standby:
        primary.reload(synchronous_standby_names="standby", synchronous_commit="remote_apply")
        primary.sql("create table kept (it int)")
        primary.sql("insert into kept values (1)")
        primary.stop(signal.SIGKILL)
        standby.promote()
        assert standby.sql("select it from kept") == [(1,)]
        standby.reload(synchronous_standby_names="")
        standby.sql("insert into kept values (2)")
        primary.start()
        assert primary.sql("select it from kept") == [(1,)]


def test_a_restarted_cluster_keeps_its_port_and_its_databases(cluster: Cluster) -> None:
    name, port = cluster.database(), cluster.port
    cluster.restart()
    assert (cluster.port, cluster.sql("select 1", name)) == (port, [(1,)])
