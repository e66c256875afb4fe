//! Each hint twice, pasted as one string: while its cause lasts, which it ends,
//! and once that is over and something else has taken its place, which it leaves
//! alone.

use harness::{
    Blocker, Cluster, Creation, Creator, PATIENCE, Process, Running, Session, Setup, Status,
    Tablesync, for_a_while, psql, runs, statements, wait_for, wait_until,
};

use crate::{Major, primary, with_extension, without_logical_slots};

const SLOT: &str = "cdc_slot";

/// A situation with a hint.
struct Case {
    cluster: Cluster,
    /// Where it is pasted.
    database: &'static str,
    hint: String,
    /// Waits until what it is about has ended.
    ends: Check,
    /// Ends that otherwise, and puts something in its place; what is true of that
    /// as long as it is unhurt.
    replace: Box<dyn FnOnce(&Cluster) -> Check>,
}

type Check = Box<dyn FnOnce(&Cluster)>;

fn paste_in_time(case: fn(Major) -> Case, major: Major) {
    let case = case(major);
    case.cluster.paste_as_one(case.database, &case.hint);
    (case.ends)(&case.cluster);
}

fn paste_too_late(case: fn(Major) -> Case, major: Major) {
    let case = case(major);
    let is_unhurt = (case.replace)(&case.cluster);
    case.cluster.paste_as_one(case.database, &case.hint);
    for_a_while();
    is_unhurt(&case.cluster);
}

/// Tests `<case>::in_time::pg16` and `<case>::too_late::pg16`.
macro_rules! cases {
    ($($case:ident),+ $(,)?) => {
        $(
            mod $case {
                use super::{paste_in_time, paste_too_late};

                scenarios!(
                    on_every_major:
                    in_time = paste_in_time(super::$case),
                    too_late = paste_too_late(super::$case),
                );
            }
        )+
    };
}

cases!(
    idle_in_transaction,
    aborted_with_savepoint,
    walsender,
    holder_of_a_lock,
    holder_of_a_lock_of_its_session,
    autovacuum,
    abandoned_creation,
    left_behind_by_a_session,
    lost_slot,
    subscription_to_its_own_cluster,
);

on_every_major!(
    prepared_in_a_lock_chain,
    several_in_a_chain,
    database_without_connections,
    template0,
    invalid_database,
    two_phase_subscription,
    functions_in_the_way,
    table_copy,
    apply_worker_in_a_chain,
    backup_in_a_chain,
    switched_off,
    another_setting_is_not_loaded,
    on_the_command_line,
    no_room_for_the_worker,
    no_logical_decoding,
    no_database,
);

/// Pastes what ALTER SYSTEM is followed by: the hint has become the reload.
#[track_caller]
pub(crate) fn load_as_told(cluster: &Cluster, slot: &str, setting: &str) {
    let status = cluster.wait_for_status(slot, "that it is to be loaded", |status| {
        status.hint().starts_with("SELECT pg_reload_conf(); -- ") && status.hint().contains(setting)
    });
    cluster.paste_as_one("postgres", status.hint());
}

/// Begins to create a slot, which waits for a transaction; its hint.
#[track_caller]
fn create(cluster: &Cluster) -> (Creation, String) {
    let creation = Creator::Walsender.start(cluster, SLOT);
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    (creation, status.hint().to_owned())
}

#[track_caller]
fn becomes_ready(mut creation: Creation) -> Check {
    Box::new(move |cluster| {
        cluster.wait_for_state(SLOT, "ready");
        creation.finish().unwrap();
    })
}

/// A session that goes on with its next customer's transaction.
#[track_caller]
fn next_transaction(mut session: Session) -> Check {
    session.run("BEGIN");
    session.run("SELECT pg_current_xact_id()");
    goes_on(session)
}

fn goes_on(mut session: Session) -> Check {
    Box::new(move |_| assert!(session.is_true("SELECT true")))
}

// -- sessions --

fn by_blocker(blocker: Blocker, major: Major) -> Case {
    let cluster = primary(major);
    let blocking = blocker.start(&cluster);
    let (creation, hint) = create(&cluster);
    assert!(runs(&hint), "{hint}");
    Case {
        cluster,
        database: "postgres",
        hint,
        ends: becomes_ready(creation),
        replace: Box::new(|_| {
            let mut session = blocking.into_session();
            session.run("ROLLBACK");
            next_transaction(session)
        }),
    }
}

/// A pooled session's next customer came half a second later.
fn idle_in_transaction(major: Major) -> Case {
    by_blocker(Blocker::IdleInTransaction, major)
}

fn aborted_with_savepoint(major: Major) -> Case {
    by_blocker(Blocker::AbortedWithSavepoint, major)
}

fn walsender(major: Major) -> Case {
    let cluster = primary(major);
    let login = cluster.login().application("walsender");
    let mut client = Psql::start(
        &cluster,
        &format!("{} replication=database", login.conninfo()),
    );
    let xid = client.begin(&cluster, "walsender", None);
    let (creation, hint) = create(&cluster);
    assert!(hint.contains(&xid), "{hint}");
    Case {
        cluster,
        database: "postgres",
        hint,
        ends: becomes_ready(creation),
        replace: Box::new(move |cluster| client.next_transaction(cluster, "walsender", &xid)),
    }
}

/// A client that goes on after an error.
struct Psql(Process);

impl Psql {
    #[track_caller]
    fn start(cluster: &Cluster, conninfo: &str) -> Psql {
        let mut program = psql(cluster, conninfo);
        program.type_line("\\set ON_ERROR_STOP 0");
        Psql(program)
    }

    /// Begins a transaction, other than the one named; its xid.
    #[track_caller]
    fn begin(&mut self, cluster: &Cluster, application: &str, before: Option<&str>) -> String {
        self.0.type_line("BEGIN;");
        self.0.type_line("SELECT pg_current_xact_id();");
        let sql = format!(
            "SELECT backend_xid FROM pg_stat_activity \
             WHERE application_name = '{application}' AND state = 'idle in transaction'"
        );
        wait_for("the transaction", PATIENCE, || {
            let xid = cluster.observe(|session| session.maybe(&sql));
            xid.filter(|xid| Some(xid.as_str()) != before)
                .ok_or_else(|| self.0.printed())
        })
    }

    /// Its session's next customer.
    #[track_caller]
    fn next_transaction(
        mut self,
        cluster: &Cluster,
        application: &'static str,
        before: &str,
    ) -> Check {
        self.0.type_line("ROLLBACK;");
        let xid = self.begin(cluster, application, Some(before));
        // a statement, which a cancel would end
        self.0.type_line("SELECT pg_sleep(3600);");
        cluster.wait_until_sql(
            "the statement",
            &format!(
                "EXISTS (SELECT FROM pg_stat_activity \
                 WHERE backend_xid = '{xid}' AND wait_event = 'PgSleep')"
            ),
        );
        Box::new(move |cluster| {
            let goes_on =
                format!("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_xid = '{xid}')");
            assert!(cluster.is_true(&goes_on), "{}", self.0.printed());
        })
    }
}

/// A creation waits for `waiter`, which waits for a lock of `holder`'s; the status
/// that says so. `others` is what the holder goes on to instead.
#[track_caller]
fn by_holder(
    cluster: Cluster,
    mut holder: Session,
    mut waiter: Running,
    others: &'static [&'static str],
) -> (Case, Status) {
    let (creation, _) = create(&cluster);
    let status = cluster.wait_for_status(SLOT, "who holds the lock", |status| {
        status.detail().contains(&format!("pid {} ", holder.pid()))
    });
    let case = Case {
        cluster,
        database: "postgres",
        hint: status.hint().to_owned(),
        ends: Box::new(move |cluster| {
            becomes_ready(creation)(cluster);
            waiter.result().expect("it could go on");
        }),
        replace: Box::new(move |_| {
            for sql in others {
                holder.run(sql);
            }
            goes_on(holder)
        }),
    };
    (case, status)
}

/// It has no xid: whoever waits for its lock has one.
fn holder_of_a_lock(major: Major) -> Case {
    let cluster = primary(major);
    cluster.run("CREATE TABLE orders (id int)");
    let mut reader = cluster.login().application("report").connect();
    reader.run("BEGIN");
    reader.run("SELECT FROM orders");
    let reader_pid = reader.pid();
    let waiter = start_waiting(&cluster, "ALTER TABLE orders ADD note text");
    let waiter_pid = waiter.pid();
    let (case, status) = by_holder(cluster, reader, waiter, &["COMMIT", "BEGIN", "SELECT 1"]);
    let detail = status.detail();
    assert!(
        detail.contains(" in ALTER TABLE. It waits for a lock of pid ")
            && detail.contains("application report"),
        "{status:#?}"
    );
    let blocker = &status.blockers[0];
    assert_eq!(blocker.pid, Some(waiter_pid));
    assert_eq!(blocker.waits_for, [reader_pid]);
    assert_eq!(blocker.backend_type.as_deref(), Some("client backend"));
    let ends_it = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {reader_pid} AND \
         xact_start = '"
    );
    assert!(status.hint().starts_with(&ends_it), "{status:#?}");
    case
}

/// A statement that waits for a lock, in a transaction that has its xid.
#[track_caller]
pub(crate) fn start_waiting(cluster: &Cluster, sql: &str) -> Running {
    let mut session = cluster.login().application("migration").connect();
    session.run("BEGIN");
    session.run("SELECT pg_current_xact_id()");
    let running = session.start(&format!("{sql}; COMMIT"));
    cluster.wait_until_sql(
        "the wait for a lock",
        &format!(
            "EXISTS (SELECT FROM pg_stat_activity WHERE pid = {} AND wait_event_type = 'Lock')",
            running.pid()
        ),
    );
    running
}

/// An advisory lock, which needs no transaction.
fn holder_of_a_lock_of_its_session(major: Major) -> Case {
    let cluster = primary(major);
    let mut holder = cluster.connect();
    holder.run("SELECT pg_advisory_lock(1)");
    let waiter = start_waiting(&cluster, "SELECT pg_advisory_lock(1)");
    by_holder(cluster, holder, waiter, &["SELECT pg_advisory_unlock(1)"]).0
}

/// Cancelled, it comes again with a transaction of its own.
fn autovacuum(major: Major) -> Case {
    let cluster = with_extension(Setup::new(major).conf(Blocker::AUTOVACUUM_CONF));
    let blocking = Blocker::Autovacuum.start(&cluster);
    let (creation, hint) = create(&cluster);
    let holder = "FROM pg_stat_activity WHERE query LIKE 'autovacuum: ANALYZE public.parent%' \
                  AND backend_xid IS NOT NULL";
    Case {
        cluster,
        database: "postgres",
        hint,
        ends: Box::new(move |cluster| {
            cluster.wait_for_log("canceling autovacuum task");
            // it may block again, in the next phase
            cluster.set("autovacuum", "off");
            cluster.run(&format!("SELECT pg_cancel_backend(pid) {holder}"));
            becomes_ready(creation)(cluster);
        }),
        replace: Box::new(move |cluster| {
            cluster.run(&format!(
                "SELECT pg_cancel_backend({})",
                blocking.pid.unwrap()
            ));
            // what it had counted is forgotten
            let mut session = cluster.connect();
            session.run("INSERT INTO parent SELECT 'x' FROM generate_series(1, 100)");
            drop(session);
            let next = format!("{holder} AND backend_xid <> '{}'", blocking.xid);
            cluster.wait_until_sql("the next autovacuum", &format!("EXISTS (SELECT {next})"));
            // It may have come to its end by itself.
            Box::new(|cluster| {
                let cancelled = cluster.count_in_log("canceling autovacuum task");
                assert_eq!(cancelled, 1, "the next one was cancelled");
            })
        }),
    }
}

fn subscription_to_its_own_cluster(major: Major) -> Case {
    let cluster = primary(major);
    cluster.run(&format!("CREATE PUBLICATION {SLOT}"));
    let login = cluster.login();
    let mut client = Psql::start(&cluster, &login.clone().application("owner").conninfo());
    client.0.type_line(&format!(
        "CREATE SUBSCRIPTION {SLOT} CONNECTION '{}' PUBLICATION {SLOT} \
         WITH (enabled = false, copy_data = false);",
        login.application(SLOT).conninfo()
    ));
    let status = cluster.wait_for_status(SLOT, "its own transaction", |status| {
        status.hint().starts_with("SELECT pg_cancel_backend(pid)")
    });
    let blocker = status.blockers[0].clone();
    Case {
        cluster,
        database: "postgres",
        hint: status.hint().to_owned(),
        ends: Box::new(|cluster| {
            wait_until("the creation to end", PATIENCE, || {
                cluster
                    .status(SLOT)
                    .is_none_or(|status| status.state == "ready")
            });
        }),
        replace: Box::new(move |cluster| {
            let pid = blocker.pid.unwrap();
            cluster.run(&format!("SELECT pg_cancel_backend({pid})"));
            client.next_transaction(cluster, "owner", &blocker.xid)
        }),
    }
}

// -- creations and slots --

/// Somebody else creates a slot of this name.
#[track_caller]
fn create_anew(cluster: &Cluster) -> Check {
    wait_until("the slot to be gone", PATIENCE, || {
        cluster.status(SLOT).is_none()
    });
    let mut creation = Creator::SqlFunction.start(cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    Box::new(move |cluster| {
        assert!(!creation.statement().unwrap().is_finished(), "it was ended");
        cluster.wait_for_state(SLOT, "waiting_for_transactions");
    })
}

fn abandoned_creation(major: Major) -> Case {
    let cluster = with_extension(Setup::new(major).conf("slot_self_heal.cancel_abandoned = off"));
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::PgRecvlogical.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    creation.program().unwrap().kill();
    let status = cluster.wait_for_state(SLOT, "abandoned");
    let creator = status.creator_pid.unwrap();
    Case {
        cluster,
        database: "postgres",
        hint: status.hint().to_owned(),
        ends: Box::new(move |cluster| {
            assert_eq!(cluster.wait_for_end_of(SLOT).outcome, "gone");
            assert!(blocking.goes_on(cluster));
        }),
        replace: Box::new(move |cluster| {
            cluster.run(&format!("SELECT pg_cancel_backend({creator})"));
            create_anew(cluster)
        }),
    }
}

/// A session with a slot whose creation failed under a savepoint.
#[track_caller]
fn leave_behind(cluster: &Cluster) -> Session {
    let blocking = Blocker::IdleInTransaction.start(cluster);
    let mut session = cluster.connect();
    session.run("SET lock_timeout = '100ms'");
    session.run(&format!(
        "DO $$ BEGIN
             PERFORM pg_create_logical_replication_slot('{SLOT}', 'pgoutput', true);
         EXCEPTION WHEN lock_not_available THEN
             NULL;
         END $$"
    ));
    blocking.rollback();
    session
}

fn left_behind_by_a_session(major: Major) -> Case {
    let cluster = primary(major);
    let session = leave_behind(&cluster);
    let status = cluster.wait_for_state(SLOT, "lost");
    Case {
        cluster,
        database: "postgres",
        hint: status.hint().to_owned(),
        ends: Box::new(|cluster| {
            wait_until("the slot to go", PATIENCE, || {
                cluster.status(SLOT).is_none()
            });
        }),
        // The session drops it, and creates another that it can use.
        replace: Box::new(move |cluster| {
            let mut session = session;
            let create =
                format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput', true)");
            // An error releases the slot, and drops it, being temporary.
            session.error(&create);
            session.run("DISCARD ALL");
            wait_until("the slot to go", PATIENCE, || {
                cluster.status(SLOT).is_none()
            });
            session.run(&create);
            Box::new(move |cluster| {
                assert!(session.is_true("SELECT true"));
                assert_eq!(cluster.status(SLOT).unwrap().state, "ready");
            })
        }),
    }
}

/// WAL segments are 1 MB here.
fn lost_slot(major: Major) -> Case {
    let cluster = with_extension(Setup::new(major).conf("max_slot_wal_keep_size = 1MB"));
    Creator::SqlFunction.start(&cluster, SLOT).finish().unwrap();
    cluster.wait_for_state(SLOT, "ready");
    for _ in 0..5 {
        cluster.run("SELECT pg_logical_emit_message(false, '', 'x')");
        cluster.run("SELECT pg_switch_wal()");
    }
    cluster.run("CHECKPOINT");
    let status = cluster.wait_for_state(SLOT, "lost");
    Case {
        cluster,
        database: "postgres",
        hint: status.hint().to_owned(),
        ends: Box::new(|cluster| assert!(cluster.status(SLOT).is_none())),
        replace: Box::new(|cluster| {
            cluster.run(&format!("SELECT pg_drop_replication_slot('{SLOT}')"));
            Creator::SqlFunction.start(cluster, SLOT).finish().unwrap();
            Box::new(|cluster| {
                cluster.wait_for_state(SLOT, "ready");
            })
        }),
    }
}

// -- what is not ended --

/// A prepared transaction has no process that pg_blocking_pids() could name.
fn prepared_in_a_lock_chain(major: Major) {
    let cluster = primary(major);
    cluster.run("CREATE TABLE orders (id int)");
    let mut waiting = cluster.connect();
    waiting.run("BEGIN");
    waiting.run("SELECT pg_current_xact_id()");
    let mut session = cluster.connect();
    session.run("BEGIN");
    session.run("SAVEPOINT s");
    session.run("LOCK TABLE orders");
    session.run("PREPARE TRANSACTION 'in the way'");
    let mut waiter = waiting.start("LOCK TABLE orders; COMMIT");
    let creation = Creator::Walsender.start(&cluster, SLOT);
    let status = cluster.wait_for_status(SLOT, "who holds the lock", |status| {
        status
            .detail()
            .contains("It waits for a lock of transaction ")
    });
    assert!(
        status
            .detail()
            .contains("prepared transaction 'in the way'"),
        "{status:#?}"
    );
    assert_eq!(status.blockers[0].waits_for, []);
    let hint = status.hint();
    assert!(
        hint.starts_with("ROLLBACK PREPARED 'in the way';"),
        "{hint}"
    );
    cluster.paste_as_one("postgres", hint);
    waiter.result().expect("it could go on");
    becomes_ready(creation)(&cluster);
}

/// The last of a chain is ended, and those before it go on by themselves.
fn several_in_a_chain(major: Major) {
    let cluster = primary(major);
    cluster.run("CREATE TABLE orders (id int)");
    cluster.run("CREATE TABLE items (id int)");
    let mut reader = cluster.connect();
    reader.run("BEGIN");
    reader.run("SELECT FROM items");
    let mut middle = cluster.connect();
    middle.run("BEGIN");
    middle.run("SELECT FROM orders");
    let mut middle = middle.start("LOCK TABLE items; COMMIT");
    let mut waiter = start_waiting(&cluster, "LOCK TABLE orders");
    let creation = Creator::Walsender.start(&cluster, SLOT);
    let status = cluster.wait_for_status(SLOT, "the end of the chain", |status| {
        status
            .detail()
            .contains(&format!("It waits for a lock of pid {} ", reader.pid()))
    });
    let blockers = status.blockers.iter();
    let mut waits = blockers.filter(|blocker| blocker.pid == Some(waiter.pid()));
    assert_eq!(waits.next().unwrap().waits_for, [middle.pid()]);
    cluster.paste_as_one("postgres", status.hint());
    middle.result().expect("it could go on");
    waiter.result().expect("it could go on");
    becomes_ready(creation)(&cluster);
}

/// A prepared transaction in a database that it is to be ended from.
#[track_caller]
fn prepare_in(cluster: &Cluster, database: &str) {
    let mut session = cluster.login().database(database).connect();
    session.run("BEGIN");
    session.run("SELECT pg_current_xact_id()");
    session.run("PREPARE TRANSACTION 'forgotten'");
}

fn database_without_connections(major: Major) {
    let cluster = primary(major);
    cluster.run("CREATE DATABASE \"The Archive\"");
    prepare_in(&cluster, "The Archive");
    cluster.run("ALTER DATABASE \"The Archive\" WITH ALLOW_CONNECTIONS false");
    opened_and_closed_again(&cluster, "The Archive");
}

fn template0(major: Major) {
    let cluster = primary(major);
    cluster.run("ALTER DATABASE template0 WITH ALLOW_CONNECTIONS true");
    prepare_in(&cluster, "template0");
    cluster.run("ALTER DATABASE template0 WITH ALLOW_CONNECTIONS false");
    opened_and_closed_again(&cluster, "template0");
}

#[track_caller]
fn opened_and_closed_again(cluster: &Cluster, database: &str) {
    let (creation, hint) = create(cluster);
    assert!(hint.starts_with("DO '"), "{hint}");
    cluster.paste_as_one("postgres", &hint);
    let status = cluster.wait_for_status(SLOT, "how to end it", |status| {
        status.hint().starts_with("ROLLBACK PREPARED 'forgotten';")
    });
    cluster.paste_as_one(database, status.hint());
    becomes_ready(creation)(cluster);
    let afterwards = statements(status.hint()).pop().unwrap();
    cluster.paste_as_one("postgres", &afterwards);
    let is_closed =
        format!("SELECT NOT datallowconn FROM pg_database WHERE datname = '{database}'");
    assert!(cluster.is_true(&is_closed));
    // Nothing is to be ended there any more.
    cluster.paste_as_one("postgres", &hint);
    assert!(cluster.is_true(&is_closed));
}

/// Ended here, it would be missed when its publisher ends it.
fn two_phase_subscription(major: Major) {
    let publisher = Setup::new(major)
        .conf("max_prepared_transactions = 5")
        .without_extension()
        .start();
    let subscriber = primary(major);
    for cluster in [&publisher, &subscriber] {
        cluster.run("CREATE TABLE orders (id int PRIMARY KEY)");
    }
    publisher.run("CREATE PUBLICATION orders FOR TABLE orders");
    subscriber.run(&format!(
        "CREATE SUBSCRIPTION orders CONNECTION '{}' PUBLICATION orders WITH (two_phase = true)",
        publisher.login().conninfo()
    ));
    subscriber.wait_until_sql(
        "the subscription's two_phase",
        "subtwophasestate = 'e' FROM pg_subscription",
    );
    let mut session = publisher.connect();
    session.run("BEGIN");
    session.run("INSERT INTO orders VALUES (1)");
    session.run("PREPARE TRANSACTION 'order_1'");
    subscriber.wait_until_sql(
        "the prepared transaction",
        "EXISTS (SELECT FROM pg_prepared_xacts)",
    );
    let (creation, hint) = create(&subscriber);
    assert!(!runs(&hint), "{hint}");
    assert!(
        hint.contains("is of a subscription with two_phase"),
        "{hint}"
    );
    subscriber.paste_as_one("postgres", &hint);
    session.run("COMMIT PREPARED 'order_1'");
    becomes_ready(creation)(&subscriber);
    subscriber.wait_until_sql("the row", "EXISTS (SELECT FROM orders)");
}

/// Whoever may create functions where a superuser pastes gets none of them run:
/// one with the very types of the arguments would come before the server's own.
fn functions_in_the_way(major: Major) {
    let cluster = primary(major);
    cluster.run("CREATE ROLE owner LOGIN");
    cluster.run("CREATE DATABASE shop OWNER owner");
    let login = cluster.login().role("owner").database("shop");
    let mut session = login.connect();
    for function in [
        "format(text, text) RETURNS text",
        "unnest(int[]) RETURNS SETOF int",
    ] {
        session.run(&format!(
            "CREATE FUNCTION public.{function} LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'trapped'; END $$"
        ));
    }
    session.run("BEGIN");
    session.run("SELECT pg_current_xact_id()");
    session.run("PREPARE TRANSACTION 'caf\u{e9}'");
    session.run("SELECT pg_advisory_lock(1)");
    let mut waiting = login.connect();
    waiting.run("BEGIN");
    waiting.run("SELECT pg_current_xact_id()");
    let _waiting = waiting.start("SELECT pg_advisory_lock(1)");
    let (_creation, _) = create(&cluster);
    let status = cluster.wait_for_status(SLOT, "both", |status| {
        status.hint().contains("format(") && status.hint().contains("unnest(")
    });
    for line in status.hint().lines() {
        cluster.paste_as_one("shop", line);
    }
    assert_eq!(cluster.count_in_log("ERROR:  trapped"), 0);
}

/// What an interrupted DROP DATABASE leaves.
fn invalid_database(major: Major) {
    let cluster = primary(major);
    cluster.run("CREATE DATABASE half_gone");
    prepare_in(&cluster, "half_gone");
    let limit = |limit: &str| {
        cluster.run(&format!(
            "UPDATE pg_database SET datconnlimit = {limit} WHERE datname = 'half_gone'"
        ));
    };
    limit("-2");
    let (creation, hint) = create(&cluster);
    assert!(!runs(&hint), "{hint}");
    assert!(hint.contains("database half_gone is invalid"), "{hint}");
    cluster.paste_as_one("postgres", &hint);
    limit("-1");
    cluster.paste_as_one("half_gone", "ROLLBACK PREPARED 'forgotten'");
    becomes_ready(creation)(&cluster);
}

/// Copies a table into this cluster: its triggers wait until table `go` has a row.
fn table_copy(major: Major) {
    let publisher = Setup::new(major).without_extension().start();
    let sync = Tablesync::prepare_with(&publisher, Setup::new(major));
    let subscriber = &sync.subscriber;
    subscriber.create_extension();
    subscriber.run("CREATE TABLE go ()");
    subscriber.run(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM pg_current_xact_id();
             WHILE NOT EXISTS (SELECT FROM public.go) LOOP
                 PERFORM pg_sleep(0.1);
             END LOOP;
             RETURN NEW;
         END $$",
    );
    subscriber
        .run("CREATE TRIGGER wait BEFORE INSERT ON copied FOR EACH ROW EXECUTE FUNCTION wait()");
    subscriber.run("ALTER TABLE copied ENABLE ALWAYS TRIGGER wait");
    publisher.run("INSERT INTO copied VALUES (1), (2)");
    publisher.run("ALTER PUBLICATION copying ADD TABLE copied");
    subscriber.run("ALTER SUBSCRIPTION copying REFRESH PUBLICATION");
    subscriber.wait_until_sql(
        "the copy",
        "EXISTS (SELECT FROM pg_stat_activity \
         WHERE backend_type LIKE 'logical replication %' AND backend_xid IS NOT NULL)",
    );
    let creation = Creator::Walsender.start(subscriber, SLOT);
    let status = subscriber.wait_for_status(SLOT, "what it is", |status| {
        status.detail().contains("copies table public.copied")
    });
    assert!(
        status.detail().contains("subscription copying"),
        "{status:#?}"
    );
    let blocker = &status.blockers[0];
    let backend_type = blocker.backend_type.as_deref().unwrap();
    assert!(
        backend_type.starts_with("logical replication "),
        "{backend_type}"
    );
    let hint = status.hint();
    assert!(!runs(hint) && statements(hint).is_empty(), "{hint}");
    assert!(
        hint.contains("for subscription copying: let it finish"),
        "{hint}"
    );
    subscriber.paste_as_one("postgres", hint);
    for_a_while();
    assert!(
        subscriber
            .status(SLOT)
            .unwrap()
            .has_blocker(blocker.pid.unwrap())
    );
    subscriber.run("INSERT INTO go DEFAULT VALUES");
    sync.finish();
    becomes_ready(creation)(subscriber);
}

/// It waits for a lock of somebody who can be ended.
fn apply_worker_in_a_chain(major: Major) {
    let publisher = Setup::new(major).without_extension().start();
    let sync = Tablesync::prepare_with(&publisher, Setup::new(major));
    let subscriber = &sync.subscriber;
    subscriber.create_extension();
    for server in [&publisher, subscriber] {
        server.run("CREATE TABLE free (id int)");
    }
    publisher.run("ALTER PUBLICATION copying ADD TABLE copied, free");
    subscriber.run("ALTER SUBSCRIPTION copying REFRESH PUBLICATION");
    subscriber.wait_until_sql(
        "both tables to be copied",
        "count(*) = 2 FROM pg_subscription_rel WHERE srsubstate = 'r'",
    );
    let mut reader = subscriber.connect();
    reader.run("BEGIN");
    reader.run("DECLARE c CURSOR FOR SELECT FROM copied");
    let mut waiter = start_waiting(subscriber, "LOCK TABLE copied");
    publisher.run("BEGIN; INSERT INTO free VALUES (1); INSERT INTO copied VALUES (1); COMMIT");
    subscriber.wait_until_sql(
        "the apply worker to wait",
        "EXISTS (SELECT FROM pg_stat_activity WHERE backend_type LIKE 'logical replication %' \
         AND backend_xid IS NOT NULL AND wait_event_type = 'Lock')",
    );
    let creation = Creator::Walsender.start(subscriber, SLOT);
    let status = subscriber.wait_for_status(SLOT, "both who wait, and for whom", |status| {
        let waits: Vec<_> = status.blockers.iter().map(|b| b.waits_for.len()).collect();
        waits == [1, 2] || waits == [1, 1]
    });
    let worker = &status.blockers[1];
    let hint = status.hint();
    assert!(
        hint.starts_with(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {} ",
            reader.pid()
        )),
        "{hint}"
    );
    // The reader is there once, and nobody is told to end the worker.
    assert_eq!(hint.matches("pg_terminate_backend").count(), 1, "{hint}");
    assert_eq!(hint.matches("pg_cancel_backend").count(), 1, "{hint}");
    assert!(
        hint.contains(&format!("transaction {}", worker.xid)),
        "{hint}"
    );
    subscriber.paste_as_one("postgres", hint);
    waiter.result().expect("it could go on");
    subscriber.wait_until_sql("the row", "count(*) = 1 FROM copied");
    becomes_ready(creation)(subscriber);
}

/// What it has written so far would be lost.
fn backup_in_a_chain(major: Major) {
    let cluster = primary(major);
    cluster.run("CREATE TABLE orders (id int)");
    let mut dump = cluster.login().application("pg_dump").connect();
    dump.run("BEGIN");
    dump.run("LOCK TABLE orders IN ACCESS SHARE MODE");
    let mut waiter = start_waiting(&cluster, "LOCK TABLE orders");
    let creation = Creator::Walsender.start(&cluster, SLOT);
    let status = cluster.wait_for_status(SLOT, "what it waits for", |status| {
        status.hint().contains("is a pg_dump: let it finish")
    });
    assert!(!runs(status.hint()), "{status:#?}");
    cluster.paste_as_one("postgres", status.hint());
    assert!(dump.is_true("SELECT true"));
    let give_up = statements(status.hint()).pop().unwrap();
    cluster.paste_as_one("postgres", &give_up);
    waiter.result().expect_err("it was given up");
    becomes_ready(creation)(&cluster);
    assert!(dump.is_true("SELECT true"));
}

// -- settings --

fn switched_off(major: Major) {
    let cluster = with_extension(Setup::new(major).conf("slot_self_heal.enabled = off"));
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let creation = Creator::Walsender.start(&cluster, SLOT);
    let status = cluster.wait_for_status(SLOT, "what to do", |status| status.hint.is_some());
    let enable = "ALTER SYSTEM SET slot_self_heal.enabled = on;";
    assert!(status.hint().starts_with(enable), "{status:#?}");
    assert_eq!(cluster.worker().hint, status.hint);
    cluster.paste_as_one("postgres", status.hint());
    assert_eq!(cluster.worker().hint, cluster.status(SLOT).unwrap().hint);
    load_as_told(&cluster, SLOT, "slot_self_heal.enabled");
    cluster.wait_for_status(SLOT, "the blocker", |status| {
        status.has_blocker(blocking.pid.unwrap())
    });
    blocking.commit();
    becomes_ready(creation)(&cluster);
}

/// What somebody else has written is not taken for it.
fn another_setting_is_not_loaded(major: Major) {
    let cluster = with_extension(Setup::new(major).conf("slot_self_heal.enabled = off"));
    cluster.run("ALTER SYSTEM SET slot_self_heal.nudge_interval = '9s'");
    let enable = "ALTER SYSTEM SET slot_self_heal.enabled = on;";
    let hint = || cluster.worker().hint.unwrap();
    assert!(hint().starts_with(enable), "{}", hint());
    cluster.paste_as_one("postgres", &hint());
    assert!(hint().starts_with("SELECT pg_reload_conf();"), "{}", hint());
    cluster.run("ALTER SYSTEM RESET slot_self_heal.enabled");
    assert!(hint().starts_with(enable), "{}", hint());
}

/// The worker's hint, pasted, has become to restart; done, it is gone.
/// There what ALTER SYSTEM writes does not count.
fn on_the_command_line(major: Major) {
    let cluster = with_extension(Setup::new(major).argument("--slot-self-heal.enabled=off"));
    let hint = cluster.worker().hint.expect("it is switched off");
    assert!(
        !runs(&hint) && hint.contains("on the server's command line"),
        "{hint}"
    );
    cluster.paste_as_one("postgres", &hint);
}

#[track_caller]
fn mended_by_restart(mut cluster: Cluster, setting: &str) {
    let hint = cluster.worker().hint.unwrap();
    assert!(
        hint.starts_with(&format!("ALTER SYSTEM SET {setting} = ")),
        "{hint}"
    );
    cluster.paste_as_one("postgres", &hint);
    let hint = cluster.worker().hint.unwrap();
    let restart = format!("-- restart the server: ALTER SYSTEM has set {setting}");
    assert!(hint.starts_with(&restart) && !runs(&hint), "{hint}");
    cluster.paste_as_one("postgres", &hint);
    cluster.restart();
    cluster.wait_for_worker("no hint", |worker| {
        worker.pid.is_some() && worker.hint.is_none()
    });
}

fn no_room_for_the_worker(major: Major) {
    let cluster = with_extension(Setup::new(major).conf("max_worker_processes = 1"));
    mended_by_restart(cluster, "max_worker_processes");
}

fn no_logical_decoding(major: Major) {
    let cluster = with_extension(without_logical_slots(major));
    mended_by_restart(cluster, "wal_level");
}

fn no_database(major: Major) {
    let cluster = with_extension(Setup::new(major).conf("slot_self_heal.database = 'nowhere'"));
    cluster.wait_for_worker("why there is none", |worker| {
        worker
            .hint
            .as_deref()
            .is_some_and(|hint| hint.contains("nowhere"))
    });
    mended_by_restart(cluster, "slot_self_heal.database");
}
