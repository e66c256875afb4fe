//! Databases of another encoding share the server's activity. What they put
//! there is not text in the worker's database (UTF-8).

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Stdio};

use harness::{Cluster, Creator, PATIENCE, Pid, Process, Status, wait_for};

use crate::{Major, primary};

const SLOT: &str = "cdc_slot";

on_every_major!(
    query_in_latin1,
    gid_in_latin1,
    names_in_latin1,
    worker_in_latin1,
    view_in_euc_jp,
);

fn create_latin1_database(cluster: &Cluster) {
    cluster.run(
        "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 \
         LC_COLLATE 'C' LC_CTYPE 'C'",
    );
}

fn query_in_latin1(major: Major) {
    let cluster = primary(major);
    create_latin1_database(&cluster);
    let mut session = cluster.login().database("latin").connect();
    session.run("BEGIN");
    session.run("SELECT pg_current_xact_id() /* café */");
    let mut creation = Creator::Walsender.start(&cluster, SLOT);

    let status = cluster.wait_for_status(SLOT, "the blocker", |status| {
        status.has_blocker(session.pid())
    });
    let query = status.blockers[0].query.as_deref().unwrap();
    assert!(
        query.starts_with("SELECT pg_current_xact_id() /* caf"),
        "{query}"
    );
    session.run("ROLLBACK");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    assert_eq!(cluster.worker().last_error, None);
}

fn gid_in_latin1(major: Major) {
    let cluster = primary(major);
    create_latin1_database(&cluster);
    let mut session = cluster.login().database("latin").connect();
    session.run("BEGIN");
    let xid = session.value("SELECT pg_current_xact_id()::xid");
    session.run("PREPARE TRANSACTION 'café'");
    let mut creation = Creator::Walsender.start(&cluster, SLOT);

    let status = cluster.wait_for_status(SLOT, "the blocker", |status| {
        status.blocker_xids() == [xid.as_str()]
    });
    assert_eq!(status.blockers[0].database.as_deref(), Some("latin"));
    assert!(
        status.blockers[0]
            .gid
            .as_deref()
            .unwrap()
            .starts_with("caf")
    );
    session.run("ROLLBACK PREPARED 'café'");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    assert_eq!(cluster.worker().last_error, None);
}

/// Names of databases and roles are in whatever encoding they were made in.
fn names_in_latin1(major: Major) {
    let cluster = primary(major);
    create_latin1_database(&cluster);
    let mut maker = cluster.login().database("latin").connect();
    maker.run("CREATE ROLE \"andré\" SUPERUSER LOGIN");
    maker.run(
        "CREATE DATABASE \"café\" ENCODING 'LATIN1' TEMPLATE template0 \
         LC_COLLATE 'C' LC_CTYPE 'C'",
    );

    // psql passes on the names' bytes as they are
    let mut psql = cluster.client("psql");
    psql.args(["--no-psqlrc", "--host=127.0.0.1", "--port"])
        .arg(cluster.port().to_string())
        .arg("--username")
        .arg(OsStr::from_bytes(b"andr\xE9"))
        .arg("--dbname")
        .arg(OsStr::from_bytes(b"caf\xE9"))
        .stdin(Stdio::piped());
    let mut psql = Process::start(psql, cluster.dir());
    psql.type_line("BEGIN; SELECT pg_current_xact_id();");
    let sql = "SELECT pid FROM pg_stat_activity \
               WHERE application_name = 'psql' AND backend_xid IS NOT NULL";
    let pid = wait_for("psql to have an xid", PATIENCE, || {
        cluster
            .observe(|session| session.maybe(sql))
            .ok_or_else(|| psql.printed())
    });
    let pid = Pid(pid.parse().unwrap());
    let mut creation = Creator::Walsender.start(&cluster, SLOT);

    let status = cluster.wait_for_status(SLOT, "the blocker", |status| status.has_blocker(pid));
    let blocker = &status.blockers[0];
    assert!(blocker.usename.as_deref().unwrap().starts_with("andr"));
    assert!(blocker.database.as_deref().unwrap().starts_with("caf"));
    psql.type_line("ROLLBACK;");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    assert_eq!(cluster.worker().last_error, None);
}

/// The other way round: the worker's own database is the odd one.
fn worker_in_latin1(major: Major) {
    let mut cluster = primary(major);
    create_latin1_database(&cluster);
    cluster.run("ALTER SYSTEM SET slot_self_heal.database = 'latin'");
    cluster.restart();
    cluster.wait_for_worker("its database", |worker| {
        worker.database.as_deref() == Some("latin")
    });
    in_utf8(&cluster, |status| {
        let query = status.blockers[0].query.as_deref().unwrap();
        assert!(query.starts_with(QUERY_BEGINS), "{query}");
    });
}

/// A database whose encoding cannot say what the blocker's can.
fn view_in_euc_jp(major: Major) {
    let cluster = primary(major);
    cluster.run(
        "CREATE DATABASE japan ENCODING 'EUC_JP' TEMPLATE template0 \
         LC_COLLATE 'C' LC_CTYPE 'C'",
    );
    let mut japan = cluster.login().database("japan").connect();
    japan.run("CREATE EXTENSION slot_self_heal");
    in_utf8(&cluster, |_| {
        let row = japan.value("SELECT to_jsonb(s) FROM slot_self_heal_status s");
        assert!(row.contains(QUERY_BEGINS), "{row}");
    });
    cluster.wait_for_end_of(SLOT);
    let row = japan.value("SELECT to_jsonb(h) FROM slot_self_heal_history h");
    assert!(row.contains(QUERY_BEGINS), "{row}");
}

const QUERY_BEGINS: &str = "SELECT pg_current_xact_id() /* ";

/// A blocker whose query is of characters that few encodings have.
fn in_utf8(cluster: &Cluster, look: impl FnOnce(&Status)) {
    let mut session = cluster.connect();
    session.run("BEGIN");
    session.run(&format!("{QUERY_BEGINS}naïve €5 \u{1F418} */"));
    let mut creation = Creator::Walsender.start(cluster, SLOT);
    let status = cluster.wait_for_status(SLOT, "the blocker", |status| {
        status.has_blocker(session.pid())
    });
    look(&status);
    session.run("ROLLBACK");
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    assert_eq!(cluster.worker().last_error, None);
}
