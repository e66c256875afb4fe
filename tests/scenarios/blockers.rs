//! Each creator behind each kind of blocker: the view names the blocker, and
//! its hint, pasted, makes the slot ready.

use harness::{
    Blocker, BlockerRow, Blocking, Cluster, Creator, Major, Setup, Status, runs, statements,
};

use crate::{blocker_action::paste_to_end, with_extension};

const SLOT: &str = "cdc_slot";

fn named_and_ended(creator: Creator, blocker: Blocker, major: Major) {
    let cluster = primary_for(blocker, major);
    let blocking = blocker.start(&cluster);
    let mut creation = creator.start(&cluster, SLOT);
    let status = wait_until_named(&cluster, creator, blocker, &blocking);

    let detail = status.detail();
    match blocking.pid {
        Some(pid) => assert!(detail.contains(&pid.to_string()), "detail: {detail}"),
        // quoted or not
        None => assert!(detail.contains("s prepared'"), "detail: {detail}"),
    }
    if blocker.state() == Some("idle in transaction") {
        assert!(detail.contains("idle in transaction"), "detail: {detail}");
    }

    end_as_told(&cluster, blocker, &blocking, &status);
    let status = cluster.wait_for_state(SLOT, "ready");
    assert!(status.blockers.is_empty(), "{status:#?}");
    assert_eq!(status.creation_started, None);
    assert_eq!(status.hint, None);
    creation.finish().expect("the client has its slot");
}

/// A primary on which this blocker can be.
#[track_caller]
pub(crate) fn primary_for(blocker: Blocker, major: Major) -> Cluster {
    let setup = match blocker {
        Blocker::Autovacuum | Blocker::WraparoundAutovacuum => {
            Setup::new(major).conf(Blocker::AUTOVACUUM_CONF)
        }
        Blocker::IdleInTransaction
        | Blocker::Active
        | Blocker::AbortedWithSavepoint
        | Blocker::Prepared
        | Blocker::AnotherDatabase
        | Blocker::BackgroundWorker
        | Blocker::Walsender => Setup::new(major),
    };
    with_extension(setup)
}

/// Waits until the view names the blocker of the slot, and how to end it.
#[track_caller]
pub(crate) fn wait_until_named(
    cluster: &Cluster,
    creator: Creator,
    blocker: Blocker,
    blocking: &Blocking,
) -> Status {
    let status = cluster.wait_for_status(SLOT, "the blocker", |status| {
        status.state == "waiting_for_transactions"
            && status.blocker_xids().contains(&blocking.xid.as_str())
    });
    check_creator(creator, &status);
    let row = status
        .blockers
        .iter()
        .find(|row| row.xid == blocking.xid)
        .expect("waited for");
    check_blocker(blocker, blocking, row);
    check_remedy(blocker, blocking, &status);
    status
}

/// Pastes the hint. What it leaves alone is ended otherwise.
#[track_caller]
pub(crate) fn end_as_told(
    cluster: &Cluster,
    blocker: Blocker,
    blocking: &Blocking,
    status: &Status,
) {
    match blocker {
        Blocker::WraparoundAutovacuum => {
            cluster.paste_as_one("postgres", status.hint());
            assert!(blocking.goes_on(cluster), "it was ended");
            // it starts again, and has then less to do
            cluster.set("autovacuum", "off");
            cancel_autovacuum(cluster, blocking);
        }
        Blocker::IdleInTransaction
        | Blocker::Active
        | Blocker::AbortedWithSavepoint
        | Blocker::Prepared
        | Blocker::Autovacuum
        | Blocker::AnotherDatabase
        | Blocker::BackgroundWorker
        | Blocker::Walsender => paste_to_end(&blocking.database, cluster, status.hint()),
    }
}

#[track_caller]
pub(crate) fn cancel_autovacuum(cluster: &Cluster, blocking: &Blocking) {
    let pid = blocking.pid.expect("it is a process");
    cluster.run(&format!("SELECT pg_cancel_backend({pid})"));
}

/// The hint's first statement ends the blocker, and nobody else.
fn check_remedy(blocker: Blocker, blocking: &Blocking, status: &Status) {
    let hint = status.hint();
    let runs_something = match blocker {
        Blocker::WraparoundAutovacuum => {
            assert!(hint.contains("let it finish"), "hint: {hint}");
            assert!(!runs(hint) && statements(hint).is_empty(), "hint: {hint}");
            return;
        }
        Blocker::BackgroundWorker => false,
        Blocker::IdleInTransaction
        | Blocker::Active
        | Blocker::AbortedWithSavepoint
        | Blocker::Prepared
        | Blocker::Autovacuum
        | Blocker::AnotherDatabase
        | Blocker::Walsender => true,
    };
    assert_eq!(runs(hint), runs_something, "hint: {hint}");
    let statement = statements(hint)
        .into_iter()
        .next()
        .unwrap_or_else(|| panic!("no statement to paste in the hint: {hint}"));
    match blocking.pid {
        Some(pid) => {
            let of_xid = format!(
                "(pid) FROM pg_stat_activity WHERE backend_xid = '{}';",
                blocking.xid
            );
            let cancel = format!("SELECT pg_cancel_backend{of_xid}");
            let terminate = format!("SELECT pg_terminate_backend{of_xid}");
            assert!([cancel, terminate].contains(&statement), "hint: {hint}");
            assert!(hint.contains(&format!("pid {pid}")), "hint: {hint}");
        }
        None => assert_eq!(statement, "ROLLBACK PREPARED 'it''s prepared';"),
    }
}

fn check_creator(creator: Creator, status: &Status) {
    assert_eq!(status.plugin, "pgoutput");
    assert_eq!(status.database, "postgres");
    assert_eq!(
        status.creator_type.as_deref(),
        Some(creator.backend_type()),
        "{status:#?}"
    );
    let application = match creator {
        Creator::Walsender
        | Creator::TemporaryWalsender
        | Creator::SqlFunction
        | Creator::TemporarySqlFunction
        | Creator::Psycopg
        | Creator::PsycopgWalsender => Some("cdc"),
        Creator::Subscription => Some(SLOT),
        Creator::PgRecvlogical | Creator::BackgroundWorker | Creator::SameClusterSubscription => {
            None
        }
    };
    if application.is_some() {
        assert_eq!(
            status.creator_application.as_deref(),
            application,
            "{status:#?}"
        );
    }
    assert!(status.creator_pid.is_some(), "{status:#?}");
    assert!(status.creation_started.is_some(), "{status:#?}");
    assert!(status.state_since.is_some(), "{status:#?}");
    assert!(status.retained_wal.is_some(), "{status:#?}");
    assert_eq!(status.wal_status.as_deref(), Some("reserved"));
}

fn check_blocker(blocker: Blocker, blocking: &Blocking, row: &BlockerRow) {
    assert_eq!(row.pid, blocking.pid);
    assert_eq!(row.gid, blocking.gid);
    assert_eq!(
        row.database.as_deref(),
        Some(blocking.database.as_str()),
        "{row:#?}"
    );
    // Postgres keeps a walsender's to itself (pg_stat_get_activity)
    let has_xact_start = blocker != Blocker::Walsender;
    assert_eq!(row.xact_start.is_some(), has_xact_start, "{row:#?}");
    if let Some(state) = blocker.state() {
        assert_eq!(row.state.as_deref(), Some(state));
    }
    let query = row.query.as_deref();
    match blocker {
        Blocker::IdleInTransaction | Blocker::AnotherDatabase => {
            check_session(row);
            assert_eq!(query, Some("SELECT pg_current_xact_id()::xid"));
        }
        Blocker::Active => {
            check_session(row);
            assert_eq!(query, Some("SELECT pg_sleep(3600)"));
        }
        Blocker::AbortedWithSavepoint => {
            check_session(row);
            assert_eq!(query, Some("SELECT 1/0"));
        }
        Blocker::Prepared => {
            // all that is known of one: its owner, its database, its time
            assert_eq!(row.usename.as_deref(), Some("postgres"));
            assert_eq!(row.client_addr, None);
        }
        Blocker::Autovacuum => {
            assert_eq!(query, Some("autovacuum: ANALYZE public.parent"));
            assert_eq!(row.client_addr, None);
        }
        Blocker::WraparoundAutovacuum => {
            let autovacuum = "autovacuum: VACUUM public.old (to prevent wraparound)";
            assert_eq!(query, Some(autovacuum));
            assert_eq!(row.client_addr, None);
        }
        Blocker::Walsender => {
            check_session(row);
            assert!(
                query.is_some_and(|query| query.contains("pg_current_xact_id")),
                "{row:#?}"
            );
        }
        Blocker::BackgroundWorker => {
            assert_eq!(query, Some("SELECT pg_current_xact_id(), pg_sleep(3600)"));
            assert_eq!(row.client_addr, None);
        }
    }
    assert_eq!(row.is_creator_peer, Some(false), "{row:#?}");
}

fn check_session(row: &BlockerRow) {
    assert_eq!(row.usename.as_deref(), Some("postgres"));
    assert_eq!(row.application_name.as_deref(), Some(Blocker::APPLICATION));
    assert_eq!(row.client_addr.as_deref(), Some("127.0.0.1"));
}

/// Tests `<blocker>::<creator>::pg16`.
macro_rules! behind_each_blocker {
    ($($blocker:ident = $kind:ident),+ $(,)?) => {
        $(
            mod $blocker {
                use super::{Blocker, Creator, named_and_ended};

                scenarios!(
                    on_every_major:
                    walsender = named_and_ended(Creator::Walsender, Blocker::$kind),
                    temporary_walsender =
                        named_and_ended(Creator::TemporaryWalsender, Blocker::$kind),
                    pg_recvlogical = named_and_ended(Creator::PgRecvlogical, Blocker::$kind),
                    sql_function = named_and_ended(Creator::SqlFunction, Blocker::$kind),
                    temporary_sql_function =
                        named_and_ended(Creator::TemporarySqlFunction, Blocker::$kind),
                    subscription = named_and_ended(Creator::Subscription, Blocker::$kind),
                    background_worker =
                        named_and_ended(Creator::BackgroundWorker, Blocker::$kind),
                );
            }
        )+
    };
}

behind_each_blocker!(
    idle_in_transaction = IdleInTransaction,
    active_session = Active,
    aborted_with_savepoint = AbortedWithSavepoint,
    prepared_transaction = Prepared,
    autovacuum = Autovacuum,
    another_database = AnotherDatabase,
    background_worker = BackgroundWorker,
);

// No creator makes a difference to what these are.
scenarios!(
    on_every_major:
    walsender = named_and_ended(Creator::SqlFunction, Blocker::Walsender),
    wraparound_autovacuum =
        named_and_ended(Creator::SqlFunction, Blocker::WraparoundAutovacuum),
);
