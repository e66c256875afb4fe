//! A stuck slot creation, what the extension says of it, and its end, on a
//! throw-away server. Run it with `make demo`.
//!
//! Exit status 0 only if each stage showed what it should.

use std::{
    panic,
    process::{Command, ExitCode},
    time::Instant,
};

use harness::{Cluster, Creator, Major, Session, Setup, Status, statements};

const SLOT: &str = "debezium";

fn main() -> ExitCode {
    // The harness panics when a server does not do as it should; whoever runs
    // a demo wants the sentence, not the backtrace.
    panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        eprintln!("\nThe demo failed: {message}");
    }));
    match panic::catch_unwind(story) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn story() {
    let cluster = Setup::new(Major::V18).start();
    let version = cluster.value("SHOW server_version");
    println!(
        "PostgreSQL {version} on port {}, made for this demo, with\n\n\
         \x20   shared_preload_libraries = 'slot_self_heal'",
        cluster.port()
    );
    cluster.run("CREATE TABLE orders (id int PRIMARY KEY, item text)");
    said(&cluster, "CREATE EXTENSION slot_self_heal");

    stage(1, "An application writes, and forgets to commit");
    let application = open_transaction(&cluster);

    stage(2, "A change-data-capture connector asks for a slot");
    println!("\n    CREATE_REPLICATION_SLOT \"{SLOT}\" LOGICAL pgoutput;");
    let mut connector = Creator::Walsender.start(&cluster, SLOT);
    let status = cluster.wait_for_status(SLOT, "the application's transaction", |status| {
        status.has_blocker(application.pid())
    });
    println!("\nIt gets no answer. All that Postgres's own view has to say:");
    said(
        &cluster,
        "SELECT slot_name, active, active_pid, restart_lsn, confirmed_flush_lsn \
         FROM pg_replication_slots",
    );

    stage(3, "What slot_self_heal says");
    said(
        &cluster,
        "SELECT slot_name, state, creator_type, creator_application,\n\
         \x20          jsonb_pretty(blockers) AS blockers, detail, hint\n\
         \x20     FROM slot_self_heal_status",
    );
    assert_eq!(status.state, "waiting_for_transactions");
    let remedy = remedy(&status);

    stage(4, "The statement of the hint, pasted");
    let pasted = Instant::now();
    said(&cluster, &remedy);
    cluster.wait_for_state(SLOT, "ready");
    println!(
        "The slot is ready, {} ms later.",
        pasted.elapsed().as_millis()
    );
    said(
        &cluster,
        "SELECT slot_name, state, blockers, wal_status, hint FROM slot_self_heal_status",
    );
    connector
        .finish()
        .unwrap_or_else(|e| panic!("the connector did not get its slot: {e}"));
    let answer = connector.program().expect("it is psql").printed();
    assert!(
        answer.contains(SLOT),
        "the connector's answer was: {answer}"
    );
    println!("and the connector has its answer:\n\n{}", indented(&answer));

    stage(5, "What is left of it in the server's log");
    cluster.wait_for_log(&format!("logical replication slot \"{SLOT}\" is ready"));
    let log = cluster.log();
    println!();
    for line in log
        .lines()
        .filter(|line| line.contains("] slot_self_heal "))
    {
        println!("    {line}");
    }
    drop(application);
    drop(cluster);
    println!("\nThe server is stopped and removed.");
}

fn stage(number: u32, title: &str) {
    println!("\n-- {number}. {title} --");
}

fn open_transaction(cluster: &Cluster) -> Session {
    let mut session = cluster.login().application("webshop").connect();
    println!();
    for sql in ["BEGIN", "INSERT INTO orders VALUES (1, 'kettle')"] {
        println!("    {sql};");
        session.run(sql);
    }
    session
}

fn remedy(status: &Status) -> String {
    statements(status.hint())
        .into_iter()
        .next()
        .unwrap_or_else(|| panic!("no statement to paste in the hint: {}", status.hint()))
}

/// Runs a statement in psql, as the reader would, and shows both.
fn said(cluster: &Cluster, sql: &str) {
    let sql = sql.trim_end_matches(';');
    println!("\n    {sql};\n");
    let mut psql: Command = cluster.client("psql");
    psql.args(["--no-psqlrc", "--expanded", "--set", "ON_ERROR_STOP=1"])
        .args(["--pset=format=wrapped", "--pset=columns=100"])
        .args(["--dbname", &cluster.login().conninfo()])
        .args(["--command", sql]);
    println!("{}", indented(&harness::output_of(psql)));
}

fn indented(text: &str) -> String {
    text.trim_end()
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect()
}
