//! Slots that will be lost to max_slot_wal_keep_size while a creation waits:
//! when, and what to do about it.

use harness::{
    Blocker, Blocking, Cluster, Creation, Creator, PATIENCE, Process, Setup, Status, for_a_while,
    statements, wait_for,
};

use crate::{Major, limits::write_wal, pasted::load_as_told, with_extension};

const SLOT: &str = "cdc_slot";
const USED: &str = "used_slot";

/// In megabytes.
const KEEP: i64 = 12;

on_every_major!(
    being_built,
    used_and_held_back_as_well,
    without_a_consumer,
    consumer_that_came_back,
    at_the_next_checkpoint,
    time_given,
    keeps_up,
    not_at_risk,
);

#[track_caller]
fn small_server(major: Major) -> Cluster {
    let setup = Setup::new(major)
        .conf(&format!("max_slot_wal_keep_size = {KEEP}MB"))
        // no checkpoint takes a slot away meanwhile
        .conf("max_wal_size = 1GB");
    with_extension(setup)
}

/// Writes WAL, some of it each second, until the view says of a slot what
/// comes of it.
#[track_caller]
fn wait_until_at_risk(cluster: &Cluster, slot: &str) -> Status {
    wait_for(&format!("a risk to {slot}"), PATIENCE, || {
        cluster.run("SELECT pg_logical_emit_message(true, '', repeat('x', 10000))");
        match cluster.status(slot) {
            Some(status) if status.detail().contains("max_slot_wal_keep_size") => Ok(status),
            seen => Err(format!("{seen:#?}")),
        }
    })
}

/// A slot that waits for a transaction.
#[track_caller]
fn create(cluster: &Cluster) -> (Blocking, Creation) {
    let blocking = Blocker::IdleInTransaction.start(cluster);
    let creation = Creator::Walsender.start(cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    (blocking, creation)
}

/// What is said of when, in numbers that agree with the row's own.
#[track_caller]
fn check_when(status: &Status) {
    let retained = status.retained_wal.expect("it holds WAL back");
    let left = status.safe_wal_size.expect("there is a limit");
    assert!(retained > 0 && left > 0, "{status:#?}");
    let detail = status.detail();
    assert!(detail.contains("If WAL is written on at "), "{detail}");
    assert!(
        detail.contains(" a second, the slot will be lost in "),
        "{detail}"
    );
    assert!(
        detail.contains(" are written (max_slot_wal_keep_size)."),
        "{detail}"
    );
}

const ROOM: &str = "max_slot_wal_keep_size";

/// The statement in a hint that gives a slot time.
#[track_caller]
fn more_room(hint: &str) -> String {
    let sets = format!("ALTER SYSTEM SET {ROOM}");
    let mut statements = statements(hint).into_iter();
    let found = statements.find(|statement| statement.starts_with(&sets));
    found.unwrap_or_else(|| panic!("no room is given: {hint}"))
}

/// Copies it out of the hint, and does what the next one says.
#[track_caller]
fn give_room(cluster: &Cluster, status: &Status) {
    cluster.paste_as_one("postgres", &more_room(status.hint()));
    load_as_told(cluster, SLOT, ROOM);
}

fn being_built(major: Major) {
    let cluster = small_server(major);
    let (blocking, mut creation) = create(&cluster);
    write_wal(&cluster, 2);
    let status = wait_until_at_risk(&cluster, SLOT);
    assert_eq!(status.state, "waiting_for_transactions");
    assert!(status.detail().starts_with("Waits for transaction "));
    check_when(&status);
    more_room(status.hint());

    cluster.paste_as_one("postgres", status.hint());
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
    drop(blocking);
}

/// A slot that a consumer has come so far with as there was to come.
struct Used {
    _consumer: Process,
}

#[track_caller]
fn consume(cluster: &Cluster) -> Used {
    cluster.run("CREATE PUBLICATION used");
    Creator::SqlFunction.start(cluster, USED).finish().unwrap();
    cluster.wait_for_state(USED, "ready");
    start_consumer(cluster)
}

#[track_caller]
fn start_consumer(cluster: &Cluster) -> Used {
    let mut consumer = cluster.client("pg_recvlogical");
    consumer
        .args(["--start", "--slot", USED, "--file=-", "--status-interval=1"])
        .args([
            "--option=proto_version=1",
            "--option=publication_names=used",
        ])
        .args(["--dbname", &cluster.login().application("sink").conninfo()]);
    let consumer = Process::start(consumer, cluster.dir());
    cluster.wait_until_sql(
        "the consumer to stream",
        "EXISTS (SELECT FROM pg_stat_replication \
         WHERE application_name = 'sink' AND state = 'streaming')",
    );
    Used {
        _consumer: consumer,
    }
}

/// Its changes may yet have to be sent, so that every slot waits for it.
#[track_caller]
fn start_writer(cluster: &Cluster) -> Blocking {
    let mut blocking = Blocker::IdleInTransaction.start(cluster);
    blocking
        .session()
        .run("SELECT pg_logical_emit_message(true, '', '')");
    blocking
}

fn used_and_held_back_as_well(major: Major) {
    let cluster = small_server(major);
    let used = consume(&cluster);
    let blocking = start_writer(&cluster);
    let mut creation = Creator::SqlFunction.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    write_wal(&cluster, 2);
    // the slot's horizon comes to the blocker, and goes no further
    let status = wait_for("the blocker to be named", PATIENCE, || {
        let status = wait_until_at_risk(&cluster, USED);
        let named = format!("Transaction {} holds it back as well: ", blocking.xid);
        match status.detail().contains(&named) {
            true => Ok(status),
            false => Err(format!("{status:#?}")),
        }
    });
    assert_eq!(status.state, "ready");
    check_when(&status);
    let pid = blocking.pid.unwrap();
    assert!(
        status.detail().contains(&format!("pid {pid} ")),
        "{status:#?}"
    );
    let terminate = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_xid = '{}';",
        blocking.xid
    );
    assert_eq!(statements(status.hint())[0], terminate);
    more_room(status.hint());
    let before = status.retained_wal;

    cluster.paste_as_one("postgres", &terminate);
    creation.finish().unwrap();
    wait_for("the used slot to let WAL go", PATIENCE, || {
        cluster.run("SELECT slot_self_heal_nudge()");
        let status = cluster.status(USED).unwrap();
        match status.retained_wal < before && status.hint.is_none() {
            true => Ok(()),
            false => Err(format!("{status:#?}")),
        }
    });
    drop(used);
}

/// The statement in a hint that drops a slot.
#[track_caller]
fn drop_of(hint: &str) -> String {
    let mut statements = statements(hint).into_iter();
    let found = statements.find(|statement| statement.contains("pg_drop_replication_slot"));
    found.unwrap_or_else(|| panic!("nothing is dropped: {hint}"))
}

/// It is nobody's transaction that holds it back.
fn without_a_consumer(major: Major) {
    let (cluster, blocking, mut creation, status) = consumer_away(major);
    // Whether it comes back, only a person knows.
    cluster.paste_as_one("postgres", status.hint());
    assert!(cluster.status(USED).is_some());
    cluster.paste_as_one("postgres", &drop_of(status.hint()));
    assert!(cluster.status(USED).is_none());
    blocking.commit();
    creation.finish().unwrap();
}

/// The hint that would drop its slot is pasted too late.
fn consumer_that_came_back(major: Major) {
    let (cluster, blocking, mut creation, status) = consumer_away(major);
    let used = start_consumer(&cluster);
    cluster.paste_as_one("postgres", status.hint());
    cluster.paste_as_one("postgres", &drop_of(status.hint()));
    assert_eq!(cluster.status(USED).unwrap().state, "ready");
    blocking.commit();
    creation.finish().unwrap();
    drop(used);
}

/// A slot that will be lost, and whose consumer is away.
#[track_caller]
fn consumer_away(major: Major) -> (Cluster, Blocking, Creation, Status) {
    let cluster = small_server(major);
    drop(consume(&cluster));
    cluster.wait_until_sql(
        "the consumer to be gone",
        &format!("NOT active FROM pg_replication_slots WHERE slot_name = '{USED}'"),
    );
    let blocking = start_writer(&cluster);
    let creation = Creator::SqlFunction.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    write_wal(&cluster, 2);
    let status = wait_until_at_risk(&cluster, USED);
    check_when(&status);
    assert!(
        status.detail().contains("No consumer is connected to it."),
        "{status:#?}"
    );
    assert!(!status.hint().contains("_backend("), "{status:#?}");
    let drop = drop_of(status.hint());
    let of_used = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = \
         '{USED}' AND restart_lsn = '"
    );
    assert!(
        drop.starts_with(&of_used) && drop.ends_with("' AND NOT active;"),
        "{drop}"
    );
    (cluster, blocking, creation, status)
}

/// It holds back more than it may, and is there only because nobody has looked.
fn at_the_next_checkpoint(major: Major) {
    let cluster = small_server(major);
    let (blocking, mut creation) = create(&cluster);
    write_wal(&cluster, KEEP as usize + 3);
    let status = cluster.wait_for_status(SLOT, "that it is lost soon", |status| {
        status
            .detail()
            .contains("The next checkpoint may take the slot away")
    });
    assert!(status.safe_wal_size.unwrap() <= 0, "{status:#?}");
    give_room(&cluster, &status);
    cluster.wait_for_status(SLOT, "room again", |status| {
        status.safe_wal_size.unwrap() > (KEEP - 4) << 20
    });
    cluster.run("CHECKPOINT");
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

/// Twice as much room, and the slot outlives what it would not have.
fn time_given(major: Major) {
    let cluster = small_server(major);
    let (blocking, mut creation) = create(&cluster);
    write_wal(&cluster, 2);
    let status = wait_until_at_risk(&cluster, SLOT);
    give_room(&cluster, &status);
    cluster.wait_until_sql(
        "the setting",
        &format!(
            "pg_size_bytes(current_setting('max_slot_wal_keep_size')) BETWEEN {} AND {}",
            (2 * KEEP - 4) << 20,
            (2 * KEEP + 4) << 20
        ),
    );
    write_wal(&cluster, KEEP as usize);
    cluster.run("CHECKPOINT");
    for_a_while();
    let status = cluster.wait_for_state(SLOT, "waiting_for_transactions");
    assert!(status.retained_wal.unwrap() > KEEP << 20, "{status:#?}");
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    creation.finish().unwrap();
}

/// A slot that holds back next to nothing, at whatever rate WAL is written.
fn keeps_up(major: Major) {
    let cluster = small_server(major);
    let used = consume(&cluster);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::SqlFunction.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    write_wal(&cluster, 2);
    wait_until_at_risk(&cluster, SLOT);
    blocking.commit();
    creation.finish().unwrap();
    // what was written then is not what will be
    wait_for("the used slot to be out of danger", PATIENCE, || {
        cluster.run("SELECT slot_self_heal_nudge()");
        match cluster.status(USED).unwrap() {
            status if status.hint.is_none() && status.detail.is_none() => Ok(()),
            status => Err(format!("{status:#?}")),
        }
    });
    drop(used);
}

/// With no limit, and with one that is far away.
fn not_at_risk(major: Major) {
    let cluster = with_extension(Setup::new(major));
    let used = consume(&cluster);
    let blocking = start_writer(&cluster);
    let mut creation = Creator::SqlFunction.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    let check = || {
        for _ in 0..3 {
            write_wal(&cluster, 1);
            for_a_while();
        }
        let status = cluster.status(SLOT).unwrap();
        assert!(
            !status.detail().contains("max_slot_wal_keep_size"),
            "{status:#?}"
        );
        assert!(
            !status.hint().contains("max_slot_wal_keep_size"),
            "{status:#?}"
        );
        let status = cluster.status(USED).unwrap();
        assert_eq!(
            (&status.detail, &status.hint),
            (&None, &None),
            "{status:#?}"
        );
    };
    check();
    cluster.set("max_slot_wal_keep_size", "'2TB'");
    check();
    blocking.commit();
    creation.finish().unwrap();
    drop(used);
}
