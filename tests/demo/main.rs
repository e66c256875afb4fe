//! Stuck slot creations, what the extension says of them, and their ends, on a
//! throw-away primary and its standby. Run it with `make demo`.
//!
//! Exit status 0 only if each stage showed what it should.

use std::{
    panic,
    process::{Command, ExitCode},
    thread::sleep,
    time::{Duration, Instant},
};

use harness::{Cluster, Creation, Creator, Lsn, Major, PATIENCE, Setup, statements, wait_until};

/// How long a creation that nobody helps is watched.
const CONTROL: Duration = Duration::from_secs(15);

/// After that the bgwriter has written its last record, if it had one to write.
const LONGEST_UNREST: Duration = Duration::from_secs(26);

/// More than a creation can need.
const MOST_RECORDS: usize = 3;

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
    let (primary, standby) = servers();
    standby_of_a_quiet_primary(&primary, &standby);
    forgotten_transaction(&primary, &standby);
    what_the_logs_say(&primary, &standby);
    drop((standby, primary));
    println!("\nThe servers are stopped and removed.");
}

fn standby_of_a_quiet_primary(primary: &Cluster, standby: &Cluster) {
    println!(
        "\nThe demo begins when the primary is quiet, in 25 s at most: after other work its \
         bgwriter\nwrites one last record, and that would help."
    );
    wait_for_rest(primary);

    stage(1, "The control: a slot on the standby, slot_self_heal off");
    let control = primary.insert_lsn();
    println!();
    let (mut connector, asked) = connector(standby, "debezium");
    // That nothing happens cannot be waited for.
    sleep(CONTROL);
    assert!(!has_answer(&mut connector), "the slot was not stuck");
    println!(
        "\nAfter {:.0} s it has no answer. All that Postgres's own views say:",
        asked.elapsed().as_secs_f64()
    );
    says(
        standby,
        "SELECT slot_name, restart_lsn, confirmed_flush_lsn, state, wait_event\n\
         \x20     FROM pg_replication_slots JOIN pg_stat_activity ON active_pid = pid",
    );
    println!("What slot_self_heal says:");
    says(
        standby,
        "SELECT slot_name, state, detail, hint FROM slot_self_heal_status",
    );

    stage(2, "Its hint, pasted");
    let hint = standby.status("debezium").expect("the slot is there").hint;
    let remedies = statements(&hint.unwrap_or_default());
    assert!(
        remedies.iter().any(|sql| sql.contains("enabled = on")),
        "the hint is not to switch it on: {remedies:?}"
    );
    let first = primary.insert_lsn();
    let mut pasted = Instant::now();
    println!();
    for remedy in &remedies {
        pasted = Instant::now();
        does(standby, remedy);
    }
    let taken = wait_for_answer(&mut connector, pasted);
    println!("\n{taken} ms after the reload the connector has its answer:\n");
    println!(
        "{}",
        indented(&connector.program().expect("it is psql").printed())
    );

    stage(3, "Another slot, slot_self_heal on from the beginning");
    let second = primary.insert_lsn();
    let sql = "SELECT * FROM pg_create_logical_replication_slot('airbyte', 'pgoutput')";
    println!("\n    standby=# {sql};");
    let session = standby.connect();
    let asked = Instant::now();
    let mut running = session.start(sql);
    wait_until("an answer", PATIENCE, || running.is_finished());
    let taken = asked.elapsed().as_millis();
    running
        .result()
        .unwrap_or_else(|e| panic!("the slot was not created: {e}"));
    println!("\nAnswered after {taken} ms.");
    let end = primary.insert_lsn();

    // This search ends the primary's rest.
    let records = records_since(primary, control);
    println!(
        "\nThe running-xacts records in the primary's WAL, counted with pg_waldump. Each is what \
         a\ncreation waits for; on its standby nobody can write one.\n"
    );
    for (when, from, to, most) in [
        ("switched off, for 15 s", control, first, 0),
        (
            "slot \"debezium\", switched on",
            first,
            second,
            MOST_RECORDS,
        ),
        ("slot \"airbyte\"", second, end, MOST_RECORDS),
    ] {
        let count = records.iter().filter(|at| (from..to).contains(*at)).count();
        println!("    {when:30} {count}");
        let least = most.min(1);
        assert!((least..=most).contains(&count), "{when}: {count} records");
    }
}

fn forgotten_transaction(primary: &Cluster, standby: &Cluster) {
    stage(
        4,
        "An application writes on the primary, and forgets to commit",
    );
    let mut application = primary.login().application("webshop").connect();
    println!();
    for sql in ["BEGIN", "INSERT INTO orders VALUES (1, 'kettle')"] {
        println!("    primary=# {sql};");
        application.run(sql);
    }

    stage(5, "Connectors ask for slots");
    println!();
    let (mut on_primary, _) = connector(primary, "electric");
    let (mut on_standby, _) = connector(standby, "peerdb");
    let waiting = [(primary, "electric"), (standby, "peerdb")].map(|(server, slot)| {
        // A standby's says it once it has lasted for a second.
        server.wait_for_log(&format!(
            "logical replication slot \"{slot}\" is being created and waits"
        ));
        server.wait_for_status(slot, "the transaction", |status| {
            status.has_blocker(application.pid())
        })
    });
    println!("\nThey get no answer. All that Postgres's own view has to say:");
    says(
        primary,
        "SELECT slot_name, active_pid, restart_lsn, confirmed_flush_lsn FROM pg_replication_slots",
    );

    stage(6, "What slot_self_heal says");
    says(
        primary,
        "SELECT slot_name, state, creator_type, creator_application, blockers, detail, hint\n\
         \x20     FROM slot_self_heal_status",
    );
    println!("The standby knows whom its slot waits for, too:");
    says(
        standby,
        "SELECT slot_name, state, detail, hint\n\
         \x20     FROM slot_self_heal_status WHERE state <> 'ready'",
    );
    let remedies = waiting.map(|status| {
        assert_eq!(status.state, "waiting_for_transactions");
        statements(status.hint())
            .into_iter()
            .next()
            .unwrap_or_else(|| panic!("no statement to paste in the hint: {}", status.hint()))
    });
    let [remedy, of_standby] = &remedies;
    assert_eq!(remedy, of_standby, "the standby's hint is another");

    stage(7, "The statement of the hint, pasted");
    let pasted = Instant::now();
    says(primary, remedy);
    let taken = wait_for_answer(&mut on_primary, pasted);
    println!("The slot on the primary is ready {taken} ms later,");
    let taken = wait_for_answer(&mut on_standby, pasted);
    println!("the one on the standby {taken} ms later.");
    for (server, slot) in [(primary, "electric"), (standby, "peerdb")] {
        server.wait_for_state(slot, "ready");
    }
}

fn what_the_logs_say(primary: &Cluster, standby: &Cluster) {
    stage(8, "What is left of it in the servers' logs");
    for (server, slot) in [(primary, "electric"), (standby, "peerdb")] {
        server.wait_for_log(&format!("logical replication slot \"{slot}\" is ready"));
        println!("\nOn the {}:\n", name(server));
        for line in server.worker_log() {
            println!("    {line}");
        }
    }
}

fn servers() -> (Cluster, Cluster) {
    let major = Major::ASKED_FOR[0];
    let primary = Setup::new(major).start();
    primary.run("CREATE TABLE orders (id int PRIMARY KEY, item text)");
    primary.create_extension();
    // Who first reads a catalog's new rows tidies their pages, and then the
    // primary is not quiet. Autovacuum is off.
    primary.run("VACUUM");
    // A worker does not say when it has heard of a reload.
    let off = "slot_self_heal.enabled = off";
    let standby = Setup::new(major)
        .conf("hot_standby_feedback = on")
        .conf(off)
        .standby_of(&primary);
    println!(
        "PostgreSQL {}, a primary on port {} and its standby on port {}, made for this demo.\n\
         Both have\n\n\
         \x20   shared_preload_libraries = 'slot_self_heal'\n\n\
         and the views of CREATE EXTENSION slot_self_heal. The standby begins with\n\n\
         \x20   {off}",
        primary.value("SHOW server_version"),
        primary.port(),
        standby.port()
    );
    (primary, standby)
}

/// Waits until the bgwriter has written its last record: it does so when the
/// one before is 15 s old and its nap, of 10 s at most, is over
/// (`BackgroundWriterMain`).
fn wait_for_rest(primary: &Cluster) {
    let (begun, before) = (Instant::now(), primary.insert_lsn());
    wait_until("a primary at rest", PATIENCE, || {
        primary.insert_lsn() != before || begun.elapsed() > LONGEST_UNREST
    });
}

/// The places of the running-xacts records written until now.
fn records_since(primary: &Cluster, start: Lsn) -> Vec<Lsn> {
    let now = primary.insert_lsn();
    let place = |record: &String| -> Option<Lsn> {
        let (_, rest) = record.split_once("lsn: ")?;
        rest.split_once(',')?.0.parse().ok()
    };
    primary
        .running_xacts_since(start)
        .iter()
        .map(|record| place(record).unwrap_or_else(|| panic!("no place in {record}")))
        .filter(|at| *at < now)
        .collect()
}

/// A change-data-capture connector that asks for a slot, and when it did.
fn connector(server: &Cluster, slot: &str) -> (Creation, Instant) {
    println!(
        "    CREATE_REPLICATION_SLOT \"{slot}\" LOGICAL pgoutput;   -- to the {}",
        name(server)
    );
    (Creator::Walsender.start(server, slot), Instant::now())
}

fn answer(connector: &mut Creation) -> String {
    connector.program().expect("it is psql").printed()
}

fn has_answer(connector: &mut Creation) -> bool {
    // the last line of a result in psql
    answer(connector).contains("(1 row)")
}

/// How many milliseconds after `since` the answer came.
fn wait_for_answer(connector: &mut Creation, since: Instant) -> u128 {
    while !has_answer(connector) {
        assert!(
            since.elapsed() < PATIENCE,
            "the connector has no answer: {}",
            answer(connector)
        );
        sleep(Duration::from_millis(1));
    }
    since.elapsed().as_millis()
}

fn stage(number: u32, title: &str) {
    println!("\n-- {number}. {title} --");
}

fn name(server: &Cluster) -> &'static str {
    match server.is_true("SELECT pg_is_in_recovery()") {
        true => "standby",
        false => "primary",
    }
}

/// Runs a statement whose result says nothing, and shows it.
fn does(server: &Cluster, sql: &str) {
    let sql = sql.trim_end_matches(';');
    println!("    {}=# {sql};", name(server));
    server.run(sql);
}

/// Runs a statement in psql, as the reader would, and shows both.
fn says(server: &Cluster, sql: &str) {
    let sql = sql.trim_end_matches(';');
    println!("\n    {}=# {sql};\n", name(server));
    let mut psql: Command = server.client("psql");
    psql.args(["--no-psqlrc", "--expanded", "--set", "ON_ERROR_STOP=1"])
        .args(["--pset=format=wrapped", "--pset=columns=100"])
        .args(["--dbname", &server.login().conninfo()])
        .args(["--command", sql]);
    println!("{}", indented(&harness::output_of(psql)));
}

fn indented(text: &str) -> String {
    text.trim_end()
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect()
}
