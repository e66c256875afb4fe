//! What can be pasted to end a blocker or a creation, or to drop a slot. Pasted late it ends nothing
//! else: what is named is found by its xid, or by whatever the next user of the same pid or of the
//! same name has not.

use super::advice::doing;
use super::diagnosis::{Kinship, kinship};
use super::episode::Episode;
use super::guard::Ending;
use super::hint::{Hint, Identifier, Literal, Sql, Text, comment, on_one_line, quote_literal, sql};
use super::locks::{self, Root, Session};
use super::observation::{Access, Holder, Pid, Role, Slot, SlotName, Subscription, Transaction};
use super::replay::InTheWay;
use super::time::Timestamp;
use super::xid::{Lsn, Xid};

/// What a process is, as far as that tells whether it may be ended.
enum Kind<'a> {
    Client,
    /// Whoever asked may not see whether it is a client's.
    Unseen,
    Walsender,
    /// pg_dump: what it has written so far is of no use without the rest.
    Backup,
    /// REPACK (19 and later): what it has copied so far is of no use without the rest.
    Repack,
    /// A walsender that sends a table's rows to a subscriber.
    Sender,
    /// A worker of logical replication, with what it works for.
    Subscriber(Option<&'a Subscription>),
    /// Another process of the server's own, by its `backend_type`.
    Server(&'a str),
}

impl<'a> Kind<'a> {
    fn of_transaction(transaction: &'a Transaction) -> Self {
        Self::new(
            transaction.backend_type.as_deref(),
            transaction.subscription.as_ref(),
            transaction.application_name.as_deref(),
            transaction.usename.as_deref(),
            transaction.query.as_deref(),
        )
    }

    fn of_session(session: &'a Session) -> Self {
        Self::new(
            session.backend_type.as_deref(),
            session.subscription.as_ref(),
            session.application_name.as_deref(),
            session.usename.as_deref(),
            session.query.as_deref(),
        )
    }

    fn new(
        backend_type: Option<&'a str>,
        subscription: Option<&'a Subscription>,
        application: Option<&'a str>,
        usename: Option<&'a str>,
        query: Option<&'a str>,
    ) -> Self {
        let application = application.unwrap_or_default();
        let query = query.unwrap_or_default();
        match backend_type {
            // Of its own processes Postgres shows the application's name to everybody, and of some
            // no role (`pg_stat_get_activity`, `pgstatfuncs.c`).
            None if locks::is_subscriber(application) => Self::Subscriber(None),
            None if usename.is_none() => Self::Server("background process"),
            None => Self::Unseen,
            Some("client backend") if application.starts_with("pg_dump") => Self::Backup,
            Some("client backend") if starts_with_word(query, "REPACK") => Self::Repack,
            Some("client backend") => Self::Client,
            // By the name of its slot (`ReplicationSlotNameForTablesync`, `tablesync.c`).
            Some("walsender")
                if starts_with_word(query, "COPY")
                    || application.starts_with("pg_") && application.contains("_sync_") =>
            {
                Self::Sender
            }
            Some("walsender") => Self::Walsender,
            Some(worker) if locks::is_subscriber(worker) => Self::Subscriber(subscription),
            Some(other) => Self::Server(other),
        }
    }
}

fn starts_with_word(query: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    let first = query.trim_start().split(|c| !is_part(c)).next();
    first.unwrap_or_default().eq_ignore_ascii_case(word)
}

/// A creation, and where those are that hold it up.
#[derive(Clone, Copy)]
struct Situation<'a> {
    episode: &'a Episode,
    place: &'static str,
    now: Timestamp,
}

/// What ends a blocker, where to run it and what to know before. What it waits for itself comes
/// first: once that is over it goes on.
pub fn of_blocker(episode: &Episode, blocker: &Transaction, role: Role, now: Timestamp) -> Hint {
    let situation = Situation {
        episode,
        place: match role {
            Role::Primary => "",
            Role::Standby => "on the primary: ",
        },
        now,
    };
    let roots = blocker.lock_wait.as_ref().map(|wait| wait.roots.as_slice());
    let hints = roots.unwrap_or_default().iter().map(|root| match root {
        Root::Transaction(root) => of_transaction(root, situation),
        Root::Session(root) => of_session(root, blocker, situation),
    });
    match hints.reduce(Hint::then) {
        None => of_transaction(blocker, situation),
        Some(hint) => hint.then(of_waiter(blocker, situation)),
    }
}

/// On one that waits for a lock of somebody else's.
fn of_waiter(blocker: &Transaction, Situation { place, now, .. }: Situation<'_>) -> Hint {
    let xid = blocker.xid;
    let doing = doing(blocker, now);
    match Kind::of_transaction(blocker) {
        Kind::Client => Hint::offer(
            comment!(
                "{place}transaction {xid}, {doing}, waits for that and goes on then; to give it up \
                 instead:"
            ),
            tell(Ending::Cancel, of_xid(xid)),
            comment!(""),
        ),
        Kind::Unseen
        | Kind::Walsender
        | Kind::Backup
        | Kind::Repack
        | Kind::Sender
        | Kind::Subscriber(_)
        | Kind::Server(_) => Hint::say(comment!(
            "{place}transaction {xid}, {doing}, waits for that and goes on then"
        )),
    }
}

fn of_transaction(blocker: &Transaction, situation: Situation<'_>) -> Hint {
    let Situation {
        episode,
        place,
        now,
    } = situation;
    let xid = blocker.xid;
    let doing = doing(blocker, now);
    match &blocker.holder {
        Holder::Session(_) if blocker.waits_for_sync_standby => Hint::run(
            sql!["SELECT application_name, state, sync_state FROM pg_stat_replication;"],
            comment!(
                "{place}it has committed, and waits for a synchronous standby \
                 (synchronous_standby_names)"
            ),
        ),
        Holder::Session(pid) => {
            let kin = match kinship(&episode.creator, blocker) {
                Kinship::None => "",
                Kinship::SameClient => {
                    "; of the same client as the slot's creator, which may end it by itself"
                }
                Kinship::SameApplication => {
                    "; of the same application as the slot's creator, which may end it by itself"
                }
                Kinship::WaitsForTheSlot => return of_self_subscriber(*pid, blocker, situation),
            };
            let who = comment!("{place}pid {pid}, {doing}{kin}");
            match Kind::of_transaction(blocker) {
                Kind::Client | Kind::Walsender => {
                    Hint::run(tell(Ending::Terminate, of_xid(xid)), who)
                }
                Kind::Unseen => {
                    let whom = sql![of_xid(xid), " AND backend_type = 'client backend'"];
                    Hint::run(tell(Ending::Terminate, whom), who)
                }
                Kind::Backup => of_backup(*pid, place),
                Kind::Repack => of_repack(*pid, &doing, of_xid(xid), place),
                Kind::Sender => of_sender(*pid, place),
                Kind::Subscriber(subscription) => of_subscriber(*pid, subscription, place),
                Kind::Server(what) => of_server_process(
                    *pid,
                    what,
                    &doing,
                    tell(Ending::Terminate, of_xid(xid)),
                    place,
                ),
            }
        }
        Holder::Autovacuum(pid) => of_autovacuum(*pid, blocker, place),
        Holder::Prepared { gid } => of_prepared(blocker, gid, place),
        Holder::Unknown => Hint::run(
            sql![
                "SELECT pid, usename, state, query FROM pg_stat_activity WHERE backend_xid = ",
                xid,
                "; SELECT gid, database FROM pg_prepared_xacts WHERE transaction = ",
                xid,
                ";"
            ],
            comment!("{place}whose it is"),
        ),
    }
}

/// On a session without an xid that holds a lock which a blocker waits for.
fn of_session(session: &Session, blocker: &Transaction, situation: Situation<'_>) -> Hint {
    let Situation {
        episode,
        place,
        now,
    } = situation;
    let pid = session.pid;
    let doing = doing(session, now);
    if pid == episode.creator.pid {
        return Hint::run(
            cancel_creation(episode),
            comment!(
                "ends the creation of the slot, which itself holds a lock that a blocker waits for"
            ),
        );
    }
    let end = tell(Ending::Terminate, of_holder(session, blocker));
    match Kind::of_session(session) {
        Kind::Client => Hint::run(end, comment!("{place}pid {pid}, {doing}")),
        Kind::Backup => of_backup(pid, place),
        Kind::Repack => of_repack(pid, &doing, of_holder(session, blocker), place),
        Kind::Sender => of_sender(pid, place),
        Kind::Subscriber(subscription) => of_subscriber(pid, subscription, place),
        Kind::Walsender => of_server_process(pid, "walsender", &doing, end, place),
        Kind::Server("autovacuum worker") => {
            let query = session.query.as_deref().unwrap_or_default();
            if may_prevent_wraparound(query) {
                to_finish(pid, query, place)
            } else {
                let whom = of_holder(session, blocker);
                Hint::run(
                    tell(Ending::Cancel, whom),
                    comment!("{place}pid {pid}, an autovacuum, which starts again later"),
                )
            }
        }
        Kind::Server(what) => of_server_process(pid, what, &doing, end, place),
        Kind::Unseen => of_server_process(pid, "session", &doing, end, place),
    }
}

/// `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE …;`
fn tell(ending: Ending, whom: Sql) -> Sql {
    let function = match ending {
        Ending::Cancel => Text("pg_cancel_backend"),
        Ending::Terminate => Text("pg_terminate_backend"),
    };
    sql![
        "SELECT ",
        function,
        "(pid) FROM pg_stat_activity WHERE ",
        whom,
        ";"
    ]
}

fn of_xid(xid: Xid) -> Sql {
    sql!["backend_xid = ", xid]
}

/// A process without an xid, in the transaction that it is in now, or, without one that is known,
/// as long as the blocker waits for it.
fn of_holder(session: &Session, blocker: &Transaction) -> Sql {
    let of_pid = sql!["pid = ", session.pid];
    match (&session.xact_start, &session.backend_start) {
        (Some(xact_start), _) => sql![of_pid, " AND xact_start = ", Literal(xact_start)],
        (None, Some(backend_start)) => sql![
            of_pid,
            " AND backend_start = ",
            Literal(backend_start),
            " AND pid IN (SELECT pg_catalog.unnest(pg_blocking_pids(pid)) FROM pg_stat_activity \
             WHERE ",
            of_xid(blocker.xid),
            ")"
        ],
        // Nobody.
        (None, None) => sql![of_pid, " AND false"],
    }
}

/// A CREATE SUBSCRIPTION to its own cluster.
fn of_self_subscriber(pid: Pid, blocker: &Transaction, situation: Situation<'_>) -> Hint {
    let Situation { episode, place, .. } = situation;
    let instead = if blocker.waits_for_walsender {
        format!(
            "create the slot first, then the subscription WITH (create_slot = false, slot_name = {})",
            quote_literal(episode.slot.as_str())
        )
    } else {
        "it creates it over a connection of its own, and has to do so outside of a transaction that \
         has written anything"
            .to_owned()
    };
    Hint::run(
        tell(Ending::Cancel, of_xid(blocker.xid)),
        comment!("{place}pid {pid} waits for the slot; {instead}"),
    )
}

fn of_backup(pid: Pid, place: &str) -> Hint {
    Hint::say(comment!(
        "{place}pid {pid} is a pg_dump: let it finish, what it has written so far is lost otherwise"
    ))
}

/// It may well wait for a lock that it needs in the end; otherwise it ends by itself.
fn of_repack(pid: Pid, doing: &str, whom: Sql, place: &str) -> Hint {
    Hint::offer(
        comment!(
            "{place}pid {pid} is a REPACK, {doing}: let it finish, what it has copied so far is lost \
             otherwise. To give it up:"
        ),
        tell(Ending::Cancel, whom),
        comment!(""),
    )
}

fn of_sender(pid: Pid, place: &str) -> Hint {
    Hint::say(comment!(
        "{place}pid {pid} is a walsender that copies a table to a subscriber: let it finish; ended, \
         the copy would begin anew"
    ))
}

fn of_subscriber(pid: Pid, subscription: Option<&Subscription>, place: &str) -> Hint {
    Hint::say(match subscription {
        Some(Subscription {
            name,
            copies: Some(table),
        }) => comment!(
            "{place}pid {pid} copies table {table} for subscription {name}: let it finish; ended, \
             the copy would begin anew"
        ),
        Some(Subscription { name, copies: None }) => comment!(
            "{place}pid {pid} applies a transaction of subscription {name}: let it finish; ended, \
             it would begin that transaction anew"
        ),
        None => comment!(
            "{place}pid {pid} is a worker of logical replication: let it finish; ended, it would \
             begin anew"
        ),
    })
}

/// Postgres does not say what is lost with one that it knows nothing of, an extension's say.
fn of_server_process(pid: Pid, what: &str, doing: &str, end: Sql, place: &str) -> Hint {
    Hint::offer(
        comment!(
            "{place}pid {pid} is a {what}, {doing}; whoever started it knows best how to stop it. \
             If it must be ended:"
        ),
        end,
        comment!(""),
    )
}

fn of_autovacuum(pid: Pid, blocker: &Transaction, place: &str) -> Hint {
    let query = blocker.query.as_deref().unwrap_or_default();
    if may_prevent_wraparound(query) {
        to_finish(pid, query, place)
    } else {
        Hint::run(
            tell(Ending::Cancel, of_xid(blocker.xid)),
            comment!("{place}pid {pid}, an autovacuum, which starts again later"),
        )
    }
}

/// As it shows itself (`autovac_report_activity`, `autovacuum.c`); without track_activities it
/// does not say.
fn may_prevent_wraparound(query: &str) -> bool {
    query.is_empty() || query.contains("(to prevent wraparound)")
}

/// Cancelled it starts again at once, and it must get to its end.
fn to_finish(pid: Pid, query: &str, place: &str) -> Hint {
    let what = match query {
        "" => "an autovacuum, maybe to prevent wraparound",
        query => query,
    };
    Hint::say(comment!(
        "{place}pid {pid} is {what}: let it finish, cancelled it would start again. \
         autovacuum_vacuum_cost_delay = 0 makes it faster, from PostgreSQL 16 on also one that runs"
    ))
}

/// It is ended from within its own database only.
fn of_prepared(blocker: &Transaction, gid: &str, place: &str) -> Hint {
    let xid = blocker.xid;
    // A name in another encoding may not have survived ours.
    let database = blocker.database.as_deref();
    let database = database.filter(|name| !name.is_empty() && !name.contains('\u{fffd}'));
    let named = database.map_or_else(
        || "its own database".to_owned(),
        |database| format!("database {database}"),
    );
    let shown = quote_literal(gid);
    if let Some(subscription) = two_phase_subscription(gid) {
        return Hint::say(comment!(
            "{place}prepared transaction {shown} is of a subscription with two_phase, OID \
             {subscription} in {named}: end it on its publisher, with COMMIT PREPARED or ROLLBACK \
             PREPARED. Ended here, that subscription stops for good; only if it is gone \
             (pg_subscription) nobody else will end it"
        ));
    }
    let allow = |allowed: Text| {
        database.map(|database| {
            sql![
                "ALTER DATABASE ",
                Identifier(database),
                " WITH ALLOW_CONNECTIONS ",
                allowed,
                ";"
            ]
        })
    };
    let first = allow(Text("true")).map(|allow| as_long_as_prepared(xid, &allow));
    // In a comment, which has one line.
    let afterwards =
        allow(Text("false")).filter(|_| database.is_some_and(|name| on_one_line(name) == name));
    match (blocker.access, first, afterwards) {
        (Access::Invalid, ..) => Hint::say(comment!(
            "{place}{named} is invalid since a DROP DATABASE was interrupted: nobody can connect to \
             it (pg_database.datconnlimit is -2), so that prepared transaction {shown} can't be \
             ended there"
        )),
        (Access::NotAllowed, Some(first), Some(afterwards)) => Hint::run(
            first,
            comment!(
                "{place}it takes no connections, and prepared transaction {shown} can be ended from \
                 within only; the next look says how"
            ),
        )
        .then(Hint::offer(
            comment!("{place}afterwards:"),
            afterwards,
            comment!(""),
        )),
        (Access::NotAllowed, ..) => Hint::run(
            sql![
                "SELECT pg_catalog.format('ALTER DATABASE %I WITH ALLOW_CONNECTIONS true', database) \
                 FROM pg_prepared_xacts WHERE transaction = ",
                xid,
                ";"
            ],
            comment!(
                "{place}and run what it says: prepared transaction {shown} can be ended from within \
                 its own database only, which takes no connections"
            ),
        ),
        (access @ (Access::Allowed | Access::AllowedMeanwhile), _, afterwards) => {
            let hint = end_prepared(xid, gid, &named, database.is_some(), place);
            // initdb leaves template0 so.
            let was_closed = access == Access::AllowedMeanwhile || database == Some("template0");
            match afterwards.filter(|_| was_closed) {
                Some(sql) => hint.then(Hint::offer(
                    comment!("{place}afterwards:"),
                    sql,
                    comment!(""),
                )),
                None => hint,
            }
        }
    }
}

/// The subscription of an apply worker that has prepared a transaction under this gid
/// (`TwoPhaseTransactionGid`, `twophase.c`).
fn two_phase_subscription(gid: &str) -> Option<u32> {
    let (subscription, xid) = gid.strip_prefix("pg_gid_")?.split_once('_')?;
    xid.parse::<u32>().ok()?;
    subscription.parse().ok()
}

/// Nothing once that prepared transaction has ended.
fn as_long_as_prepared(xid: Xid, statement: &Sql) -> Sql {
    let body = sql![
        "BEGIN IF EXISTS (SELECT FROM pg_prepared_xacts WHERE transaction = ",
        xid,
        ") THEN ",
        *statement,
        " END IF; END"
    ];
    sql!["DO ", Literal(&body.to_string()), ";"]
}

fn end_prepared(xid: Xid, gid: &str, database: &str, is_known: bool, place: &str) -> Hint {
    if gid.is_ascii() && is_known {
        Hint::run(
            sql!["ROLLBACK PREPARED ", Literal(gid), ";"].alone(),
            comment!("{place}or COMMIT PREPARED; in {database}, as its owner or a superuser"),
        )
    } else {
        // It is in its own database's encoding, and may not have survived ours.
        Hint::run(
            sql![
                "SELECT pg_catalog.format('ROLLBACK PREPARED %L', gid), database FROM \
                 pg_prepared_xacts WHERE transaction = ",
                xid,
                ";"
            ],
            comment!("{place}and run what it says, in {database}"),
        )
    }
}

/// On a session that a standby's replay waits for: ends it as long as it is in that transaction.
pub fn of_conflict(session: &InTheWay) -> Hint {
    let place = "on this standby: ";
    let pid = session.pid;
    match (session.kind(), &session.xact_start) {
        (Kind::Backup, _) => of_backup(pid, place),
        (Kind::Sender, _) => of_sender(pid, place),
        (Kind::Subscriber(_), _) => of_subscriber(pid, None, place),
        // Of its transaction nobody is told (`pg_stat_get_activity`, `pgstatfuncs.c`).
        (Kind::Walsender, _) => Hint::say(comment!(
            "{place}pid {pid} is a walsender{}: its client ends its statement, or its connection",
            session.named()
        )),
        (Kind::Client | Kind::Repack | Kind::Unseen | Kind::Server(_), Some(xact_start)) => {
            Hint::run(
                tell(
                    Ending::Terminate,
                    sql!["pid = ", pid, " AND xact_start = ", Literal(xact_start)],
                ),
                comment!("{place}pid {pid}{}", session.named()),
            )
        }
        (Kind::Client | Kind::Repack | Kind::Unseen | Kind::Server(_), None) => {
            Hint::say(comment!("{place}pid {pid} is just ending"))
        }
    }
}

impl InTheWay {
    fn kind(&self) -> Kind<'_> {
        Kind::new(
            self.backend_type.as_deref(),
            None,
            self.application_name.as_deref(),
            self.usename.as_deref(),
            self.query.as_deref(),
        )
    }

    fn named(&self) -> String {
        let role = self.usename.iter().map(|role| format!("role {role}"));
        let application = self.application_name.iter();
        let application = application
            .filter(|name| !name.is_empty())
            .map(|name| format!("application {name}"));
        let names: Vec<String> = role.chain(application).collect();
        match names.as_slice() {
            [] => String::new(),
            names => format!(" ({})", names.join(", ")),
        }
    }
}

/// Ends this creation, and no other of the same slot.
pub fn cancel_creation(episode: &Episode) -> Sql {
    sql![
        "SELECT pg_cancel_backend(active_pid) FROM pg_replication_slots WHERE ",
        unfinished(&episode.slot, episode.restart_lsn()),
        " AND active_pid = ",
        episode.creator.pid,
        ";"
    ]
}

/// Drops what a creation left behind. With a session that holds it: ends that.
pub fn drop_left_behind(slot: &Slot, holder: Option<Pid>) -> Hint {
    let unfinished = unfinished(&slot.name, slot.restart_lsn);
    match holder {
        None => Hint::run(
            drop_unused(unfinished),
            comment!("then let its client create it anew"),
        ),
        Some(pid) => Hint::run(
            sql![
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE ",
                unfinished,
                " AND active_pid = ",
                pid,
                ";"
            ],
            comment!("drops it, being the session that holds it"),
        ),
    }
}

/// Drops a slot that Postgres has given up.
pub fn drop_invalidated(slot: &Slot) -> Hint {
    Hint::run(
        drop_unused(sql!["slot_name = ", slot.name, " AND wal_status = 'lost'"]),
        comment!("then let its client create it anew"),
    )
}

/// Drops a slot whose consumer is away, unless it has come back.
pub fn drop_unconsumed(slot: &Slot) -> Hint {
    Hint::offer(
        comment!("or, if its consumer will never come back, drop it:"),
        drop_unused(sql![
            "slot_name = ",
            slot.name,
            " AND restart_lsn",
            equals(slot.restart_lsn)
        ]),
        comment!(""),
    )
}

fn drop_unused(which: Sql) -> Sql {
    sql![
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE ",
        which,
        " AND NOT active;"
    ]
}

/// A slot that was never usable, and that begins here.
fn unfinished(slot: &SlotName, restart_lsn: Option<Lsn>) -> Sql {
    sql![
        "slot_name = ",
        *slot,
        " AND restart_lsn",
        equals(restart_lsn),
        " AND confirmed_flush_lsn IS NULL"
    ]
}

fn equals(lsn: Option<Lsn>) -> Sql {
    match lsn {
        Some(lsn) => sql![" = ", lsn],
        None => sql![" IS NULL"],
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::locks::LockWait;
    use super::*;

    fn remedy(blocker: &Transaction, role: Role) -> String {
        let watch = watching(vec![blocker.clone()]);
        let episode = watch.episodes.values().next().expect("an episode");
        of_blocker(episode, blocker, role, at(5000)).to_string()
    }

    fn on_primary(blocker: &Transaction) -> String {
        remedy(blocker, Role::Primary)
    }

    fn worker(backend_type: &str, subscription: Option<Subscription>) -> Transaction {
        Transaction {
            backend_type: Some(backend_type.into()),
            subscription,
            state: None,
            ..session(700, 9)
        }
    }

    /// Whether there is anything to run in it.
    fn only_says(hint: &str) -> bool {
        hint.lines().all(|line| line.starts_with("-- "))
    }

    #[test]
    fn what_should_go_on_is_not_ended() {
        let subscription = |copies: Option<&str>| Subscription {
            name: "s".into(),
            copies: copies.map(str::to_owned),
        };
        let copy = worker(
            "logical replication worker",
            Some(subscription(Some("public.t"))),
        );
        assert_eq!(
            on_primary(&copy),
            "-- pid 9 copies table public.t for subscription s: let it finish; ended, the copy would \
             begin anew"
        );
        for other in [
            worker(
                "logical replication parallel worker",
                Some(subscription(None)),
            ),
            worker("logical replication apply worker", None),
            Transaction {
                application_name: Some(
                    "logical replication apply worker for subscription 1".into(),
                ),
                backend_type: None,
                ..session(700, 9)
            },
            Transaction {
                query: Some("COPY public.t TO STDOUT".into()),
                ..worker("walsender", None)
            },
            Transaction {
                application_name: Some("pg_16400_sync_16390_7400000000000000000".into()),
                ..worker("walsender", None)
            },
            Transaction {
                application_name: Some("pg_dump".into()),
                ..session(700, 9)
            },
            worker("pg_cron launcher", None),
        ] {
            assert!(only_says(&on_primary(&other)), "{other:?}");
        }
        let repack = Transaction {
            query: Some("repack(verbose, concurrently) t".into()),
            state: Some("active".into()),
            ..session(700, 9)
        };
        let offer = on_primary(&repack);
        assert!(only_says(&offer), "{offer}");
        assert!(
            offer.starts_with("-- pid 9 is a REPACK, active for")
                && offer.contains("SELECT pg_cancel_backend(pid) FROM pg_stat_activity"),
            "{offer}"
        );
        let job = remedy(&worker("pg_cron", None), Role::Standby);
        assert_eq!(
            job,
            "-- on the primary: pid 9 is a pg_cron, running for 5 s; whoever started it knows best \
             how to stop it. If it must be ended: SELECT pg_terminate_backend(pid) FROM \
             pg_stat_activity WHERE backend_xid = '700';"
        );
    }

    #[test]
    fn an_autovacuum_that_must_finish_is_left_alone() {
        let autovacuum = |query: &str| Transaction {
            holder: Holder::Autovacuum(pid(9)),
            query: Some(query.into()),
            ..session(700, 9)
        };
        let must = on_primary(&autovacuum(
            "autovacuum: VACUUM a.t (to prevent wraparound)",
        ));
        assert!(only_says(&must) && must.contains("a.t"), "{must}");
        assert!(only_says(&on_primary(&autovacuum(""))));
        assert!(!only_says(&on_primary(&autovacuum(
            "autovacuum: VACUUM a.t"
        ))));
    }

    #[test]
    fn of_a_session_that_may_not_be_seen_only_a_clients_is_ended() {
        let unseen = Transaction {
            backend_type: None,
            state: None,
            ..session(700, 9)
        };
        let hint = remedy(&unseen, Role::Standby);
        assert!(
            hint.starts_with(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_xid = '700' \
                 AND backend_type = 'client backend'; -- on the primary: "
            ),
            "{hint}"
        );
    }

    fn waits_for(root: Root) -> Transaction {
        Transaction {
            state: Some("active".into()),
            query: Some("ALTER TABLE t ADD c int".into()),
            lock_wait: Some(LockWait {
                waits_for: vec![pid(9)],
                roots: vec![root],
            }),
            ..session(701, 8)
        }
    }

    #[test]
    fn whoever_holds_the_lock_comes_first() {
        let end_of = |session| on_primary(&waits_for(Root::Session(Box::new(session))));
        let give_up = "-- transaction 701, active for 5 s in ALTER TABLE, waits for that and goes on \
                       then; to give it up instead: SELECT pg_cancel_backend(pid) FROM \
                       pg_stat_activity WHERE backend_xid = '701';";
        assert_eq!(
            end_of(reader(9)),
            format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = 9 AND \
                 xact_start = '2026-11-22T21:00:00.000001+00:00'; -- pid 9, idle in transaction for \
                 5 s\n{give_up}"
            )
        );
        // A lock that outlives transactions.
        let without_transaction = Session {
            xact_start: None,
            ..reader(9)
        };
        assert_eq!(
            end_of(without_transaction).lines().next(),
            Some(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = 9 AND \
                 backend_start = '2026-11-22T20:00:00.000001+00:00' AND pid IN (SELECT \
                 pg_catalog.unnest(pg_blocking_pids(pid)) FROM pg_stat_activity WHERE backend_xid = '701'); -- \
                 pid 9, idle in transaction for 5 s"
            )
        );
        let backup = Session {
            application_name: Some("pg_dump".into()),
            ..reader(9)
        };
        assert!(only_says(&end_of(backup)));
        let prepared = on_primary(&waits_for(Root::Transaction(Box::new(prepared(700, "g")))));
        assert!(
            prepared.starts_with("ROLLBACK PREPARED 'g'; -- "),
            "{prepared}"
        );
        assert!(prepared.ends_with(give_up), "{prepared}");
    }

    #[test]
    fn a_creator_that_holds_the_lock_itself_gives_up() {
        let creator = creator().identity.pid.get();
        let hint = on_primary(&waits_for(Root::Session(Box::new(reader(creator)))));
        let cancel = "SELECT pg_cancel_backend(active_pid) FROM pg_replication_slots WHERE slot_name \
                      = 'x' AND restart_lsn = '0/1000000' AND confirmed_flush_lsn IS NULL AND \
                      active_pid = 100; -- ";
        assert!(hint.starts_with(cancel), "{hint}");
    }

    #[test]
    fn what_a_subscription_has_prepared_is_ended_by_its_publisher() {
        assert!(only_says(&on_primary(&prepared(700, "pg_gid_16447_786"))));
        for gid in [
            "pg_gid_16447",
            "pg_gid_x_786",
            "pg_gid_16447_",
            "gid_16447_786",
        ] {
            assert_eq!(two_phase_subscription(gid), None, "{gid}");
        }
    }

    #[test]
    fn replay_waits_for_what_is_to_finish() {
        let there = |backend_type: &str, application: &str, query: &str| {
            let session = InTheWay {
                backend_type: Some(backend_type.into()),
                application_name: Some(application.into()),
                query: Some(query.into()),
                ..in_the_way(9)
            };
            of_conflict(&session).to_string()
        };
        assert_eq!(
            there("client backend", "report", "SELECT 1"),
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = 9 AND xact_start = \
             '2026-11-22T21:00:00.000001+00:00'; -- on this standby: pid 9 (role app, application \
             report)"
        );
        assert!(only_says(&there(
            "client backend",
            "pg_dump",
            "COPY t TO stdout;"
        )));
        assert!(only_says(&there(
            "walsender",
            "pg_16_sync_17_18",
            "COPY t TO STDOUT"
        )));
        assert!(only_says(&there("walsender", "cdc", "START_REPLICATION")));
    }

    #[test]
    fn a_database_that_lets_nobody_in_is_opened_first() {
        let in_database = |access| Transaction {
            access,
            database: Some("it's".into()),
            ..prepared(700, "g")
        };
        let closed = on_primary(&in_database(Access::NotAllowed));
        let lines: Vec<_> = closed.lines().collect();
        assert!(
            lines[0].starts_with(
                "DO 'BEGIN IF EXISTS (SELECT FROM pg_prepared_xacts WHERE transaction = ''700'') \
                 THEN ALTER DATABASE \"it''s\" WITH ALLOW_CONNECTIONS true; END IF; END'; -- "
            ),
            "{closed}"
        );
        let close = "-- afterwards: ALTER DATABASE \"it's\" WITH ALLOW_CONNECTIONS false;";
        assert_eq!(lines[1..], [close]);
        let opened = on_primary(&in_database(Access::Allowed.since(Access::NotAllowed)));
        assert!(opened.starts_with("ROLLBACK PREPARED 'g'; -- "), "{opened}");
        assert!(opened.ends_with(close), "{opened}");
        assert!(only_says(&on_primary(&in_database(Access::Invalid))));
        let garbled = |access| Transaction {
            database: Some("caf\u{fffd}".into()),
            ..in_database(access)
        };
        for access in [Access::NotAllowed, Access::Allowed] {
            let hint = on_primary(&garbled(access));
            assert!(hint.starts_with("SELECT pg_catalog.format('"), "{hint}");
        }
    }
}
