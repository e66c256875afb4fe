//! CREATE, ALTER and DROP EXTENSION.

use harness::{Blocker, Creator, Setup, output_of};

use crate::{Major, NO_WAL_WRITER, primary, with_extension};

const SLOT: &str = "cdc_slot";

on_every_major!(
    pg_upgrade_into_a_server_that_preloads_it,
    not_preloaded,
    in_a_schema_of_its_own,
    dropped_while_the_worker_runs,
    in_two_databases,
);

fn not_preloaded(major: Major) {
    let cluster = Setup::new(major).without_extension().start();
    cluster.create_extension();
    let mut session = cluster.connect();
    for sql in [
        "SELECT * FROM slot_self_heal_status",
        "SELECT * FROM slot_self_heal_worker",
        "SELECT slot_self_heal_reset()",
    ] {
        let error = session.error(sql);
        assert_eq!(error.code, "55000", "{sql}: {error}");
        assert!(
            error.hint.contains("SHOW shared_preload_libraries")
                && error.hint.contains("no quotes around it"),
            "{sql}: {error}"
        );
    }
    session.run("DROP EXTENSION slot_self_heal");
}

fn in_a_schema_of_its_own(major: Major) {
    let cluster = Setup::new(major).start();
    let mut session = cluster.connect();
    session.run("CREATE SCHEMA \"Heal me\"");
    session.run("CREATE EXTENSION slot_self_heal SCHEMA \"Heal me\"");
    Creator::SqlFunction.start(&cluster, SLOT).finish().unwrap();
    session.run("SET search_path = ''");
    let state = "SELECT state FROM \"Heal me\".slot_self_heal_status";
    assert_eq!(session.value(state), "ready");
    assert_eq!(
        session.number("SELECT count(*) FROM \"Heal me\".slot_self_heal_worker"),
        1
    );
    session.run("SELECT \"Heal me\".slot_self_heal_nudge()");
    session.run("SELECT \"Heal me\".slot_self_heal_reset()");

    session.run("DROP EXTENSION slot_self_heal");
    let left = session.rows("SELECT relname FROM pg_class WHERE relname LIKE 'slot\\_self%'");
    assert!(left.is_empty(), "{left:?}");
    let left = session.rows("SELECT proname FROM pg_proc WHERE proname LIKE 'slot\\_self%'");
    assert!(left.is_empty(), "{left:?}");
}

fn dropped_while_the_worker_runs(major: Major) {
    let cluster = with_extension(Setup::new(major).conf(NO_WAL_WRITER));
    let _frozen = cluster.freeze_bgwriter();
    let worker = cluster
        .wait_for_worker("a pid", |worker| worker.pid.is_some())
        .pid;
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    cluster.run("DROP EXTENSION slot_self_heal");

    blocking.rollback();
    creation.finish().unwrap();
    cluster.wait_for_log(&format!("logical replication slot \"{SLOT}\" is ready"));
    cluster.create_extension();
    let after = cluster.worker();
    assert_eq!(after.pid, worker);
    assert!(after.nudges.unwrap() >= 1, "{after:#?}");
    assert_eq!(after.last_error, None);
}

fn in_two_databases(major: Major) {
    let cluster = primary(major);
    cluster.run("CREATE DATABASE elsewhere");
    let mut elsewhere = cluster.login().database("elsewhere").connect();
    elsewhere.run("CREATE EXTENSION slot_self_heal");
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let creation = Creator::Walsender.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    assert_eq!(
        elsewhere.value("SELECT state FROM slot_self_heal_status"),
        "waiting_for_transactions"
    );
    drop((creation, blocking));
}

/// pg_upgrade drops and restores database postgres, in which the worker sits on
/// an ordinary day.
fn pg_upgrade_into_a_server_that_preloads_it(major: Major) {
    let mut old = primary(major);
    old.stop_fast();
    let mut new = Setup::new(major).start();
    new.stop_fast();
    let bin = major.program("postgres");
    let bin = bin.parent().expect("a program is in a directory");
    let mut upgrade = new.client("pg_upgrade");
    upgrade
        .current_dir(new.dir())
        .args(["--username", "postgres"])
        .arg("--old-bindir")
        .arg(bin)
        .arg("--new-bindir")
        .arg(bin)
        .arg("--old-datadir")
        .arg(old.data())
        .arg("--new-datadir")
        .arg(new.data())
        .args(["--old-port", &old.port().to_string()])
        .args(["--new-port", &new.port().to_string()]);
    output_of(upgrade);
    new.start_again();
    new.wait_for_worker("a pid", |worker| worker.pid.is_some());
}
