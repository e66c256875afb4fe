//! The client of a creation goes while its slot waits. Postgres does not
//! notice: the creation goes on, and the slot would stay and hold back WAL for
//! nobody.

use harness::{
    Blocker, Cluster, Creation, Creator, Leaving, PATIENCE, Process, Setup, Signal, Status,
    Tablesync, for_a_while, statements, wait_until,
};

use crate::{
    Major,
    limits::{LOG_CODES, SLOT, check_cancelled, check_untouched},
    pasted::load_as_told,
    with_extension,
};

pub(crate) const CANCEL_ABANDONED: &str = "slot_self_heal.cancel_abandoned";

scenarios!(
    on_every_major:
    killed_pg_recvlogical = cancelled_after(kill, Creator::PgRecvlogical),
    killed_psql = cancelled_after(kill, Creator::Walsender),
    killed_with_a_temporary_slot = cancelled_after(kill, Creator::TemporaryWalsender),
    killed_application = cancelled_after(kill, Creator::Psycopg),
    closed = cancelled_after(close, Creator::Psycopg),
    closed_to_a_walsender = cancelled_after(close, Creator::PsycopgWalsender),
    shut_down_one_way = cancelled_after(shut_down, Creator::Psycopg),
    shut_down_one_way_to_a_walsender = cancelled_after(shut_down, Creator::PsycopgWalsender),
    broken_off = cancelled_after_a_reset(Creator::Psycopg),
    broken_off_to_a_walsender = cancelled_after_a_reset(Creator::PsycopgWalsender),
    socket_to_a_walsender = cancelled_by(Way::Socket, "pg_recvlogical"),
    socket_to_a_backend = cancelled_by(Way::Socket, "psql"),
    ipv6_to_a_walsender = cancelled_by(Way::Ipv6, "pg_recvlogical"),
    ipv6_to_a_backend = cancelled_by(Way::Ipv6, "psql"),
);

on_every_major!(
    subscriber_stopped,
    tablesync_worker_terminated,
    subscription_dropped,
    subscription_disabled,
    with_its_client,
    network_cut,
    created_again_by_another_client,
    not_to_be_cancelled,
    to_be_cancelled_from_now_on,
);

type Leave = fn(&mut Creation);

pub(crate) fn kill(creation: &mut Creation) {
    creation.program().expect("the client is a program").kill();
}

pub(crate) fn close(creation: &mut Creation) {
    creation.leave(Leaving::Close);
}

fn shut_down(creation: &mut Creation) {
    creation.leave(Leaving::Shutdown);
}

/// With the SQLSTATE in each line of the log.
#[track_caller]
fn primary(major: Major) -> Cluster {
    with_extension(Setup::new(major).conf(LOG_CODES))
}

/// Waits until a creation's client is seen to be gone. That it is cancelled by
/// and by, the view says.
#[track_caller]
pub(crate) fn wait_until_abandoned(cluster: &Cluster, slot: &str) -> Status {
    let status = cluster.wait_for_state(slot, "abandoned");
    let detail = status.detail();
    assert!(
        detail.starts_with("Its client closed the connection "),
        "{status:#?}"
    );
    assert!(
        detail.contains(" ago; slot_self_heal cancels the creation in "),
        "{status:#?}"
    );
    assert_eq!(status.hint, None);
    status
}

/// The log of a creation that was abandoned and cancelled.
#[track_caller]
pub(crate) fn check_abandoned(cluster: &Cluster, status: &Status) {
    let finished = check_cancelled(cluster, status, CANCEL_ABANDONED);
    let slot = &finished.slot_name;
    let log = cluster.worker_log();
    let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    let gone = format!(
        "08006 LOG:  logical replication slot \"{slot}\" is being created for a client that is gone"
    );
    assert_eq!(count(&gone), 1, "{log:#?}");
    assert_eq!(
        count(": its client has closed the connection"),
        1,
        "{log:#?}"
    );
    assert_eq!(cluster.worker().cancelled, Some(1));
    assert_eq!(cluster.worker().last_error, None);
    assert!(cluster.is_true(&format!(
        "SELECT ended_at - started_at >= '10s' FROM slot_self_heal_history \
         WHERE slot_name = '{slot}' ORDER BY ended_at DESC LIMIT 1"
    )));
}

fn cancelled_after(leave: Leave, creator: Creator, major: Major) {
    cancelled_when_left(creator, major, |_, creation| leave(creation));
}

/// The server's kernel forgets such a connection at once: the worker must have
/// looked at it before, which it first does after a second.
fn cancelled_after_a_reset(creator: Creator, major: Major) {
    cancelled_when_left(creator, major, |cluster, creation| {
        cluster.wait_until_sql(
            "a look at the connection",
            "(SELECT last_scan_at FROM slot_self_heal_worker) > \
             (SELECT creation_started + '1.5 s' FROM slot_self_heal_status)",
        );
        creation.leave(Leaving::Reset);
    });
}

fn cancelled_when_left(
    creator: Creator,
    major: Major,
    leave: impl FnOnce(&Cluster, &mut Creation),
) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = creator.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    leave(&cluster, &mut creation);
    let status = wait_until_abandoned(&cluster, SLOT);
    assert_eq!(status.blocker_pids(), [blocking.pid]);
    check_abandoned(&cluster, &status);
    check_untouched(&cluster, blocking);
}

/// To the server, other than by IPv4.
#[derive(Clone, Copy)]
enum Way {
    /// The server's Unix-domain socket, of which /proc tells no state.
    Socket,
    Ipv6,
}

impl Way {
    /// A program that creates a slot.
    fn client(self, program: &str, slot: &str, cluster: &Cluster) -> Process {
        let login = cluster.login().application("cdc");
        let conninfo = match self {
            Way::Socket => login.conninfo_by_socket(),
            Way::Ipv6 => login.conninfo().replace("127.0.0.1", "::1"),
        };
        let mut client = cluster.client(program);
        client.args(["--dbname", &conninfo]);
        match program {
            "psql" => client.arg("--command").arg(format!(
                "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
            )),
            _ => client.args(["--create-slot", "--slot", slot, "--plugin", "pgoutput"]),
        };
        Process::start(client, cluster.dir())
    }
}

/// One client goes, another that came in the same way lives.
fn cancelled_by(way: Way, program: &str, major: Major) {
    let mut setup = Setup::new(major).conf(LOG_CODES);
    if let Way::Ipv6 = way {
        // machines without IPv6 can have networks with it
        setup = setup
            .own_network()
            .conf("listen_addresses = '127.0.0.1, ::1'");
    }
    let cluster = with_extension(setup);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut client = way.client(program, SLOT, &cluster);
    let mut other = way.client(program, "other_slot", &cluster);
    for slot in [SLOT, "other_slot"] {
        cluster.wait_for_state(slot, "waiting_for_transactions");
    }
    client.kill();
    let status = wait_until_abandoned(&cluster, SLOT);
    check_abandoned(&cluster, &status);
    let living = cluster.status("other_slot").expect("it is being created");
    assert_eq!(living.state, "waiting_for_transactions", "{living:#?}");
    check_untouched(&cluster, blocking);
    assert!(other.finish().success(), "{}", other.printed());
}

/// It crashes, as it were, while it creates a subscription.
fn subscriber_stopped(major: Major) {
    let cluster = primary(major);
    let mut subscriber = Setup::new(major).without_extension().start();
    cluster.run(&format!("CREATE PUBLICATION {SLOT}"));
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let conninfo = cluster.login().application(SLOT).conninfo();
    let running = subscriber.login().start(&format!(
        "CREATE SUBSCRIPTION {SLOT} CONNECTION '{conninfo}' PUBLICATION {SLOT}"
    ));
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    assert!(subscriber.stop(Signal::Quit, PATIENCE));
    drop(running);
    let status = wait_until_abandoned(&cluster, SLOT);
    check_abandoned(&cluster, &status);
    check_untouched(&cluster, blocking);
}

/// The next worker first drops the slot of the last, and waits for it
/// (`DROP_REPLICATION_SLOT … WAIT`). Then it creates its own, of the same name,
/// and has all the time it needs.
fn tablesync_worker_terminated(major: Major) {
    let cluster = primary(major);
    let tablesync = Tablesync::prepare(&cluster);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let slot = tablesync.start(&cluster);
    cluster.wait_for_state(&slot, "waiting_for_transactions");
    tablesync.terminate_worker();
    let status = wait_until_abandoned(&cluster, &slot);
    check_abandoned(&cluster, &status);

    let again = cluster.wait_for_status(&slot, "the next creation", |again| {
        again.state == "waiting_for_transactions" && again.creator_pid != status.creator_pid
    });
    assert_ne!(again.creation_started, status.creation_started);
    check_goes_on(&cluster, &slot);
    blocking.commit();
    tablesync.finish();
    assert_eq!(cluster.worker().cancelled, Some(1));
}

/// DROP SUBSCRIPTION waits for the slot in the same way.
fn subscription_dropped(major: Major) {
    let cluster = primary(major);
    let tablesync = Tablesync::prepare(&cluster);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let slot = tablesync.start(&cluster);
    cluster.wait_for_state(&slot, "waiting_for_transactions");
    let login = tablesync.subscriber.login();
    let mut dropping = login.start("DROP SUBSCRIPTION copying");
    let status = wait_until_abandoned(&cluster, &slot);
    assert!(!dropping.is_finished());
    dropping.result().expect("it waits no more");
    check_abandoned(&cluster, &status);
    assert_eq!(
        cluster.number("SELECT count(*) FROM pg_replication_slots"),
        0
    );
    check_untouched(&cluster, blocking);
}

/// Longer than a creation that is abandoned has, it is not abandoned.
#[track_caller]
pub(crate) fn check_goes_on(cluster: &Cluster, slot: &str) {
    for _ in 0..7 {
        for_a_while();
        let status = cluster.status(slot).expect("it is being created");
        assert_eq!(status.state, "waiting_for_transactions", "{status:#?}");
    }
}

/// Its worker stays where it is, and so does the connection.
fn subscription_disabled(major: Major) {
    let cluster = primary(major);
    let tablesync = Tablesync::prepare(&cluster);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let slot = tablesync.start(&cluster);
    cluster.wait_for_state(&slot, "waiting_for_transactions");
    let subscriber = &tablesync.subscriber;
    subscriber.run("ALTER SUBSCRIPTION copying DISABLE");
    check_goes_on(&cluster, &slot);
    assert_eq!(cluster.worker().cancelled, Some(0));

    subscriber.run("ALTER SUBSCRIPTION copying ENABLE");
    blocking.commit();
    tablesync.finish();
    assert_eq!(cluster.worker().cancelled, Some(0));
}

/// And the background worker has none that could go.
fn with_its_client(major: Major) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creations: Vec<Creation> = [
        Creator::Walsender,
        Creator::PgRecvlogical,
        Creator::SqlFunction,
        Creator::Subscription,
        Creator::BackgroundWorker,
        Creator::Psycopg,
    ]
    .into_iter()
    .enumerate()
    .map(|(n, creator)| creator.start(&cluster, &format!("slot_{n}")))
    .collect();
    let slots: Vec<String> = (0..creations.len()).map(|n| format!("slot_{n}")).collect();
    for slot in &slots {
        cluster.wait_for_state(slot, "waiting_for_transactions");
    }
    check_goes_on(&cluster, &slots[0]);
    for slot in &slots {
        let status = cluster.status(slot).expect("it is being created");
        assert_eq!(status.state, "waiting_for_transactions", "{status:#?}");
    }
    assert_eq!(cluster.worker().cancelled, Some(0));
    blocking.commit();
    for (slot, creation) in slots.iter().zip(&mut creations) {
        cluster.wait_for_state(slot, "ready");
        creation.finish().unwrap();
    }
}

/// Whether the client is still there cannot be known, so it is taken for
/// granted. Its end becomes known with the network's.
fn network_cut(major: Major) {
    let setup = Setup::new(major).own_network().conf(LOG_CODES);
    let cluster = with_extension(setup);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::Psycopg.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    cluster.cut_network();
    creation.program().unwrap().kill();
    check_goes_on(&cluster, SLOT);
    assert_eq!(cluster.worker().cancelled, Some(0));

    cluster.mend_network();
    let status = wait_until_abandoned(&cluster, SLOT);
    check_abandoned(&cluster, &status);
    check_untouched(&cluster, blocking);
}

/// The same name, another creation: its time is its own, even if the worker
/// has not seen that there was none in between.
fn created_again_by_another_client(major: Major) {
    let cluster = primary(major);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut first = Creator::Psycopg.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    first.leave(Leaving::Close);
    let status = wait_until_abandoned(&cluster, SLOT);
    let creator = status.creator_pid.unwrap();
    let frozen = cluster.freeze_worker();
    assert!(cluster.is_true(&format!("SELECT pg_cancel_backend({creator})")));
    cluster.wait_until_sql(
        "the slot's end",
        "NOT EXISTS (SELECT FROM pg_replication_slots)",
    );
    let mut second = Creator::Psycopg.start(&cluster, SLOT);
    cluster.wait_until_sql(
        "the second creation to wait",
        "EXISTS (SELECT FROM pg_stat_activity \
         WHERE application_name = 'cdc' AND wait_event = 'transactionid')",
    );
    drop(frozen);
    cluster.wait_for_status(SLOT, "the second creation", |again| {
        again.state == "waiting_for_transactions" && again.creator_pid != Some(creator)
    });
    check_goes_on(&cluster, SLOT);
    blocking.commit();
    cluster.wait_for_state(SLOT, "ready");
    second.finish().unwrap();
    // to the history they are the tries of one client
    wait_until("both to be history", PATIENCE, || {
        let rows: Vec<_> = cluster.history();
        let rows: Vec<_> = rows.iter().map(|h| (h.outcome.as_str(), h.tries)).collect();
        rows == [("ready", 2)]
    });
    assert_eq!(cluster.worker().cancelled, Some(0));
}

/// An abandoned creation on a server that cancels none: the hint's statements.
#[track_caller]
fn left_alone(major: Major) -> (Cluster, harness::Blocking, Status) {
    let setup = Setup::new(major)
        .conf("slot_self_heal.cancel_abandoned = off")
        .conf(LOG_CODES);
    let cluster = with_extension(setup);
    let blocking = Blocker::IdleInTransaction.start(&cluster);
    let mut creation = Creator::PgRecvlogical.start(&cluster, SLOT);
    cluster.wait_for_state(SLOT, "waiting_for_transactions");
    kill(&mut creation);
    let status = cluster.wait_for_state(SLOT, "abandoned");
    assert!(!status.detail().contains("cancels"), "{status:#?}");
    for _ in 0..6 {
        for_a_while();
        assert_eq!(cluster.status(SLOT).unwrap().state, "abandoned");
    }
    assert_eq!(cluster.worker().cancelled, Some(0));
    (cluster, blocking, status)
}

fn not_to_be_cancelled(major: Major) {
    let (cluster, blocking, status) = left_alone(major);
    let creator = status.creator_pid.unwrap();
    let cancel = &statements(status.hint())[0];
    assert!(
        cancel.starts_with(&format!(
            "SELECT pg_cancel_backend(active_pid) FROM pg_replication_slots WHERE slot_name = \
             '{SLOT}' AND restart_lsn = '"
        )) && cancel.ends_with(&format!(" AND active_pid = {creator};")),
        "{cancel}"
    );
    cluster.paste_as_one("postgres", status.hint());
    let finished = cluster.wait_for_end_of(SLOT);
    assert_eq!(finished.outcome, "gone");
    assert!(cluster.status(SLOT).is_none());
    assert_eq!(cluster.worker().cancelled, Some(0));
    check_untouched(&cluster, blocking);
}

fn to_be_cancelled_from_now_on(major: Major) {
    let (cluster, blocking, status) = left_alone(major);
    let setting = &statements(status.hint())[1];
    assert_eq!(
        *setting,
        format!("ALTER SYSTEM SET {CANCEL_ABANDONED} = on;")
    );
    cluster.paste_as_one("postgres", setting);
    load_as_told(&cluster, SLOT, CANCEL_ABANDONED);
    check_cancelled(&cluster, &status, CANCEL_ABANDONED);
    check_untouched(&cluster, blocking);
}
