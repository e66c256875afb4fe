use crate::{
    cluster::{Cluster, Setup},
    wait::{PATIENCE, wait_for},
};

/// A subscription that is to copy one more table. A worker of the subscriber
/// does that, a tablesync worker, with a slot of its own on the publisher;
/// Postgres chooses the slot's name.
///
/// It comes in two steps, because whatever blocks the worker's slot would block
/// the subscription's as well.
pub struct Tablesync {
    /// It has no extension, unless it was set up with it. Its subscription is `copying`. DISABLE leaves the
    /// worker where it is: in the middle of a command to the publisher it looks
    /// at nothing but interrupts (`libpqrcv_PQgetResult`). DROP ends it.
    pub subscriber: Cluster,
}

impl Tablesync {
    /// The subscription streams when this returns.
    #[track_caller]
    pub fn prepare(publisher: &Cluster) -> Tablesync {
        let subscriber = Setup::new(publisher.major())
            .without_extension()
            .network_of(publisher);
        Tablesync::prepare_with(publisher, subscriber)
    }

    /// The same, with a subscriber that may have the extension.
    #[track_caller]
    pub fn prepare_with(publisher: &Cluster, subscriber: Setup) -> Tablesync {
        let subscriber = subscriber.start();
        publisher.run("CREATE TABLE copied (id int)");
        publisher.run("CREATE PUBLICATION copying");
        subscriber.run("CREATE TABLE copied (id int)");
        let conninfo = publisher.login().application("copying").conninfo();
        subscriber.run(&format!(
            "CREATE SUBSCRIPTION copying CONNECTION '{conninfo}' PUBLICATION copying"
        ));
        publisher.wait_until_sql(
            "the subscription to stream",
            "EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')",
        );
        Tablesync { subscriber }
    }

    /// Begins to copy; the worker's slot, which it has begun to create.
    #[track_caller]
    pub fn start(&self, publisher: &Cluster) -> String {
        publisher.run("ALTER PUBLICATION copying ADD TABLE copied");
        self.subscriber
            .run("ALTER SUBSCRIPTION copying REFRESH PUBLICATION");
        let sql = "SELECT slot_name FROM pg_replication_slots WHERE slot_name ~ '^pg_.*_sync_'";
        wait_for("the tablesync worker's slot", PATIENCE, || {
            publisher
                .observe(|session| session.maybe(sql))
                .ok_or_else(|| "no such slot".to_owned())
        })
    }

    /// The worker ends; another tries again after wal_retrieve_retry_interval.
    #[track_caller]
    pub fn terminate_worker(&self) {
        self.subscriber.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_subscription WHERE relid IS NOT NULL",
        );
    }

    /// Waits until the table is copied; its slot is gone then.
    #[track_caller]
    pub fn finish(&self) {
        self.subscriber.wait_until_sql(
            "the table to be copied",
            "(SELECT srsubstate FROM pg_subscription_rel) IN ('s', 'r')",
        );
    }
}
