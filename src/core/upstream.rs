//! The server that can write the record which a slot on a standby needs: what it answered, or why
//! it did not, and what to do about that.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::hint::{Hint, Identifier, Setting, Sql, comment, sql};
use super::observation::{Running, SlotName, Transaction};
use super::time::{Timestamp, in_words};
use super::xid::{Lsn, Xid};

/// What is known of the upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upstream {
    /// It was never asked.
    #[default]
    NotNeeded,
    Ok,
    Trouble(Problem),
}

impl Upstream {
    /// As `slot_self_heal_worker.upstream` shows it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NotNeeded => "not needed",
            Self::Ok => "ok",
            Self::Trouble(problem) => problem.kind.as_str(),
        }
    }

    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Trouble(problem) => Some(problem),
            Self::NotNeeded | Self::Ok => None,
        }
    }
}

/// The upstream's transactions, and how far its WAL goes.
#[derive(Clone, Debug)]
pub struct Look {
    pub at: Timestamp,
    /// `None` where the upstream is itself a standby.
    pub running: Option<Running>,
    /// Oldest first.
    pub transactions: Vec<Transaction>,
    /// The end of its WAL, where it writes its own.
    pub position: Option<Lsn>,
    /// Where it is itself a standby.
    pub relay: Option<Relay>,
    /// The role that may not see what sessions of others do.
    pub blind: Option<String>,
    /// Its logical slots.
    pub slots: Vec<RemoteSlot>,
}

/// What a standby has to send on to its own standbys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// The end of what it has received, or replayed from an archive.
    pub received: Lsn,
    /// Whether its WAL receiver is connected.
    pub receives: bool,
}

/// A record that was written for us.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Record {
    pub lsn: Lsn,
    /// What it says, where that is known.
    pub running: Option<Running>,
}

/// A logical slot on the upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteSlot {
    pub name: SlotName,
    pub restart_lsn: Option<Lsn>,
    pub catalog_xmin: Option<Xid>,
    pub confirmed_flush_lsn: Option<Lsn>,
    /// Whether a consumer is connected to it.
    pub active: bool,
    /// Whether standbys may copy it (17 and later).
    pub failover: bool,
    /// Whether that one gets nothing before standbys have it (`synchronized_standby_slots`).
    pub waits_for_standbys: bool,
}

/// Why the upstream did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub kind: Kind,
    /// In the log's style: no capital letter, no full stop.
    pub message: String,
    pub hint: Hint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    NotConfigured,
    Unreachable,
    NotPermitted,
    IsStandby,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::NotConfigured => "not configured",
            Self::Unreachable => "unreachable",
            Self::NotPermitted => "not permitted",
            Self::IsStandby => "upstream is a standby",
        }
    }
}

/// Which setting named the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `slot_self_heal.primary_conninfo`
    Ours,
    /// `primary_conninfo`
    Server,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "slot_self_heal.primary_conninfo",
            Self::Server => "primary_conninfo",
        })
    }
}

/// How many servers have passed a request on. Each tells the next in its application's name, so that
/// standbys that name each other, or themselves, as their upstream find out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop(u32);

impl Hop {
    const NAME: &str = "slot_self_heal";
    /// No cascade is longer.
    const MOST: u32 = 4;

    /// Of the request that a session of this application passes on.
    pub fn after(application_name: &str) -> Result<Self, Problem> {
        let passed_on = match application_name.strip_prefix(Self::NAME) {
            None => 0,
            Some(rest) => rest
                .strip_prefix('/')
                .and_then(|hops| hops.parse().ok())
                .unwrap_or(0_u32),
        };
        if passed_on < Self::MOST {
            Ok(Self(passed_on + 1))
        } else {
            Err(Problem::passed_in_circles(passed_on))
        }
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str(Self::NAME),
            hops => write!(f, "{}/{hops}", Self::NAME),
        }
    }
}

/// As whom, and to which database, the upstream is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// `None`: as libpq chooses.
    pub role: Option<String>,
    pub database: String,
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(role) = &self.role {
            write!(f, "as role {role}, ")?;
        }
        write!(f, "to database {}", self.database)
    }
}

/// The function that writes the record on the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writer {
    /// `slot_self_heal_nudge()` in this schema. It flushes.
    Extension { schema: String },
    /// `pg_log_standby_snapshot()`, PostgreSQL 16 and later. The WAL writer flushes later.
    Core,
}

impl Writer {
    /// A call of it, with its arguments, of which it has none.
    pub fn call(&self) -> Sql {
        match self {
            Self::Extension { schema } => {
                sql![Identifier(schema), ".slot_self_heal_nudge()"]
            }
            Self::Core => sql!["pg_catalog.pg_log_standby_snapshot()"],
        }
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Extension { schema } => write!(f, "{schema}.slot_self_heal_nudge()"),
            Self::Core => f.write_str("pg_catalog.pg_log_standby_snapshot()"),
        }
    }
}

/// What kind of error it answered with, by its SQLSTATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotPermitted,
    NotInPrerequisiteState,
    Other,
}

/// How the upstream introduces itself (`sql/upstream.sql`).
#[derive(Clone, Debug)]
pub struct Introduction {
    pub in_recovery: bool,
    /// `server_version`
    pub version: String,
    pub system_identifier: String,
    /// The role of the connection.
    pub role: String,
    pub database: String,
    /// The schema of the extension in that database.
    pub extension_schema: Option<String>,
    /// That schema, and the extension's function in it.
    pub may_use_schema: bool,
    pub may_use_extension: bool,
    /// `slot_self_heal_end_blocker()`; `None` where there is no such function.
    pub may_end_blockers: Option<bool>,
    /// `None` before PostgreSQL 16, which has no such function.
    pub may_use_core: Option<bool>,
    pub sees_all: bool,
    /// The end of its WAL, where it writes its own.
    pub position: Option<Lsn>,
    /// Where it is itself a standby.
    pub relay: Option<Relay>,
    pub next_xid: Xid,
    /// `slot_self_heal.enabled`, and on without it.
    pub is_enabled: bool,
    /// `slot_self_heal.*` there, empty without it. A name is not checked before it is used.
    pub blocker_action: String,
    pub blocker_scope: String,
    pub protected_roles: String,
}

impl Introduction {
    /// The function to ask for a record. The extension's is preferred, since it flushes.
    pub fn writer(&self) -> Result<Writer, Problem> {
        let extension = self
            .extension_schema
            .as_ref()
            .map(|schema| Writer::Extension {
                schema: schema.clone(),
            });
        match extension {
            Some(writer) if self.may_use_schema && self.may_use_extension && self.is_enabled => {
                Ok(writer)
            }
            // Only the extension passes a request on.
            Some(_) if self.in_recovery && !self.is_enabled => {
                Err(Problem::disabled(name_the_primary()))
            }
            None if self.in_recovery => Err(Problem::is_standby(&self.database)),
            Some(writer) if self.in_recovery => Err(self.not_permitted(&writer)),
            extension => match (self.may_use_core, extension) {
                (Some(true), _) => Ok(Writer::Core),
                // It need not be switched on for that.
                (_, Some(_)) if !self.is_enabled => Err(Problem::disabled(Hint::run(
                    grant(&Writer::Core, &self.role),
                    comment!(
                        "on the primary, in database {}: the server's own function",
                        self.database
                    ),
                ))),
                (_, Some(writer)) => Err(self.not_permitted(&writer)),
                (Some(false), None) => Err(self.not_permitted(&Writer::Core)),
                (None, None) => Err(Problem::too_old(&self.version, &self.database)),
            },
        }
    }

    /// The schema of the function that ends blockers there.
    pub fn blocker_ender(&self) -> Result<&str, Problem> {
        let Self { role, database, .. } = self;
        match (&self.extension_schema, self.may_end_blockers) {
            _ if self.in_recovery => Err(Problem {
                kind: Kind::IsStandby,
                message: "it is itself a standby, where no transaction can be ended".into(),
                hint: name_the_primary(),
            }),
            (Some(schema), Some(true)) if self.may_use_schema => Ok(schema),
            (Some(schema), Some(_)) => Err(Problem {
                kind: Kind::NotPermitted,
                message: format!(
                    "role {role} may not execute {schema}.slot_self_heal_end_blocker(xid, interval) \
                     in database \"{database}\" of the upstream"
                ),
                hint: Hint::run(
                    sql![
                        self.grant_usage(schema),
                        "GRANT EXECUTE ON FUNCTION ",
                        Identifier(schema),
                        ".slot_self_heal_end_blocker(xid, interval) TO ",
                        Identifier(role),
                        ";"
                    ],
                    comment!(
                        "on the primary, in database {database}, if this standby may have blockers \
                         ended there by the primary's rules"
                    ),
                ),
            }),
            (_, None) | (None, _) => Err(Problem {
                kind: Kind::NotConfigured,
                message: "it has no slot_self_heal_end_blocker(xid, interval)".into(),
                hint: Hint::run(
                    sql!["CREATE EXTENSION slot_self_heal;"],
                    comment!(
                        "on the primary, in database {database}, with slot_self_heal preloaded there"
                    ),
                ),
            }),
        }
    }

    /// What else to try on a primary where that function fails.
    pub fn other_writer(&self, writer: &Writer) -> Option<Writer> {
        match writer {
            Writer::Extension { .. } if !self.in_recovery && self.may_use_core == Some(true) => {
                Some(Writer::Core)
            }
            Writer::Extension { .. } | Writer::Core => None,
        }
    }

    /// What an error of that function means.
    pub fn refusal(&self, writer: &Writer, message: &str, refusal: Refusal) -> Problem {
        match refusal {
            Refusal::NotPermitted => self.not_permitted(writer),
            Refusal::NotInPrerequisiteState | Refusal::Other if self.in_recovery => {
                Problem::not_passed_on(message, writer)
            }
            // What the function itself says, unless the library is preloaded.
            Refusal::NotInPrerequisiteState => Problem::not_preloaded(&self.role, &self.database),
            Refusal::Other => Problem::refused(message),
        }
    }

    /// What a function in the extension's schema takes besides the privilege on itself.
    fn grant_usage(&self, schema: &str) -> Sql {
        if self.may_use_schema {
            sql![""]
        } else {
            sql![
                "GRANT USAGE ON SCHEMA ",
                Identifier(schema),
                " TO ",
                Identifier(&self.role),
                "; "
            ]
        }
    }

    fn not_permitted(&self, writer: &Writer) -> Problem {
        let Self { role, database, .. } = self;
        let usage = match writer {
            Writer::Extension { schema } => self.grant_usage(schema),
            Writer::Core => sql![""],
        };
        Problem {
            kind: Kind::NotPermitted,
            message: format!(
                "role {role} may not execute {writer} in database \"{database}\" of the upstream"
            ),
            hint: Hint::run(
                sql![usage, grant(writer, role)],
                comment!(
                    "on the primary, in database {database}: privileges on functions belong to one \
                     database"
                ),
            ),
        }
    }
}

impl Problem {
    fn disabled(hint: Hint) -> Self {
        Self {
            kind: Kind::NotConfigured,
            message: "slot_self_heal.enabled is off on the upstream".into(),
            hint,
        }
    }

    pub fn no_conninfo() -> Self {
        Self {
            kind: Kind::NotConfigured,
            message: "neither slot_self_heal.primary_conninfo nor primary_conninfo is set".into(),
            hint: on_this_standby("<the primary>"),
        }
    }

    /// Says nothing of what is wrong with it: that could quote a password.
    pub fn invalid_conninfo(source: Source) -> Self {
        Self {
            kind: Kind::NotConfigured,
            message: format!("{source} is not a valid connection string"),
            hint: on_this_standby("<the primary>"),
        }
    }

    pub fn other_cluster(source: Source, here: &str, there: &str) -> Self {
        Self {
            kind: Kind::NotConfigured,
            message: format!(
                "{source} leads to another cluster: its system identifier is {there}, this \
                 server's is {here}"
            ),
            hint: on_this_standby("<this standby's primary>"),
        }
    }

    fn too_old(version: &str, database: &str) -> Self {
        Self {
            kind: Kind::NotConfigured,
            message: format!(
                "the upstream is PostgreSQL {version}, which has no pg_log_standby_snapshot()"
            ),
            hint: Hint::run(
                sql!["CREATE EXTENSION slot_self_heal;"],
                comment!("on the primary, in database {database}"),
            ),
        }
    }

    fn is_standby(database: &str) -> Self {
        Self {
            kind: Kind::IsStandby,
            message:
                "the upstream is itself a standby, and has no slot_self_heal to pass a request on"
                    .into(),
            hint: on_this_standby("<the primary>")
                .then(Hint::say(comment!(
                    "Or, with slot_self_heal preloaded on the upstream and on the primary:"
                )))
                .then(Hint::run(
                    sql!["CREATE EXTENSION slot_self_heal;"],
                    comment!("on the primary, in database {database}"),
                )),
        }
    }

    /// The upstream, itself a standby, could not pass a request on.
    pub fn not_passed_on(message: &str, writer: &Writer) -> Self {
        const PREFIX: &str = "the upstream, itself a standby, could not pass the request on: ";
        // Once is enough, however many passed it on.
        let reason = first_line(message).trim_start_matches(PREFIX);
        Self {
            kind: Kind::IsStandby,
            message: format!("{PREFIX}{reason}"),
            hint: Hint::run(
                sql!["SELECT ", writer.call(), ";"],
                comment!(
                    "on the upstream: its error says what to do there. Or go straight to the primary:"
                ),
            )
            .then(name_the_primary()),
        }
    }

    fn passed_in_circles(hops: u32) -> Self {
        Self {
            kind: Kind::IsStandby,
            message: format!(
                "the request was passed on {hops} times from standby to standby and reached no \
                 primary"
            ),
            hint: Hint::say(comment!(
                "does a standby name itself, or another that names it, as its upstream? Otherwise \
                 go straight to the primary:"
            ))
            .then(name_the_primary()),
        }
    }

    /// Says so of one that is tried again after long pauses only.
    pub fn tried_again_within(mut self, longest: Duration) -> Self {
        self.hint = self.hint.then(Hint::say(comment!(
            "once that is mended, the next try comes within {}, or at once after this, on this \
             standby: SELECT pg_reload_conf();",
            in_words(longest)
        )));
        self
    }

    pub fn timed_out(limit: Duration) -> Self {
        Self {
            kind: Kind::Unreachable,
            message: format!("the upstream did not answer within {}", in_words(limit)),
            hint: Hint::say(comment!(
                "on this standby: does psql reach the server that primary_conninfo names?"
            )),
        }
    }

    pub fn unresolved(source: Source, names: &[String]) -> Self {
        // What is no host name may be a part of a password that was to be written otherwise.
        let is_plain = |name: &String| {
            name.chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        };
        let names = if names.iter().all(is_plain) {
            format!(": {}", names.join(", "))
        } else {
            ", which is not a plain name; in a URI, @ in a password is written %40".into()
        };
        Self {
            kind: Kind::Unreachable,
            message: format!("could not look up the host in {source}{names}"),
            hint: Hint::say(comment!(
                "on this standby: does its name service know the host? An address needs none"
            )),
        }
    }

    pub fn cannot_look_up(source: Source, error: &io::Error) -> Self {
        Self {
            kind: Kind::Unreachable,
            message: format!("could not run getent to look up the host in {source}: {error}"),
            hint: Hint::say(comment!(
                "on this standby: is getent (of the C library's package) on the server's PATH? \
                   An address needs none"
            )),
        }
    }

    /// The upstream could not be connected to, or the connection was lost. `message` is libpq's,
    /// which never contains a password.
    pub fn unreachable(message: &str, login: &Login) -> Self {
        Self {
            kind: Kind::Unreachable,
            message: format!("could not reach the upstream: {}", first_line(message)),
            hint: match pg_hba_line(message) {
                Some(line) => Hint::say(comment!(
                    "add to pg_hba.conf on the upstream, above any line that rejects it:"
                ))
                .then(Hint::say(comment!("{line}")))
                .then(Hint::run(
                    sql!["SELECT pg_reload_conf();"],
                    comment!("on the upstream"),
                )),
                None => Hint::say(comment!(
                    "on this standby: does psql reach that server, {login}?"
                )),
            },
        }
    }

    /// The upstream has the extension, but not its library.
    pub fn not_preloaded(role: &str, database: &str) -> Self {
        Self {
            kind: Kind::NotConfigured,
            message:
                "the upstream has the extension slot_self_heal, but did not preload its library"
                    .into(),
            hint: Hint::run(
                grant(&Writer::Core, role),
                comment!(
                    "on the primary, in database {database}. Or add slot_self_heal to \
                     shared_preload_libraries there (ALTER SYSTEM takes the list without quotes \
                     around it) and restart it"
                ),
            ),
        }
    }

    /// What it answered is of no use; what it is.
    pub fn unusable(what: &str) -> Self {
        Self {
            kind: Kind::Unreachable,
            message: format!(
                "the upstream did not answer as a PostgreSQL server would: it sent {what}"
            ),
            hint: Hint::say(comment!(
                "on this standby: does primary_conninfo, or slot_self_heal.primary_conninfo, lead \
                 straight to the primary?"
            )),
        }
    }

    /// The upstream answered with an error.
    pub fn refused(message: &str) -> Self {
        Self {
            kind: Kind::Unreachable,
            message: format!(
                "the upstream answered with an error: {}",
                first_line(message)
            ),
            hint: Hint::say(comment!("the upstream's log says more")),
        }
    }
}

/// The privilege to have a record written.
fn grant(writer: &Writer, role: &str) -> Sql {
    sql![
        "GRANT EXECUTE ON FUNCTION ",
        writer.call(),
        " TO ",
        Identifier(role),
        ";"
    ]
}

/// For what only the primary can do. To be filled in first, and so not SQL.
pub fn name_the_primary() -> Hint {
    on_this_standby("<the primary>")
}

fn on_this_standby(host: &str) -> Hint {
    Hint::offer_to_set(
        comment!("on this standby:"),
        Setting::at_reload(
            "slot_self_heal.primary_conninfo",
            format!("host={host} user=<role>"),
        ),
        comment!(""),
    )
}

/// The first line of an error as libpq gives it, without its severity.
fn first_line(message: &str) -> &str {
    let line = message.lines().next().unwrap_or_default().trim();
    ["ERROR:", "FATAL:"]
        .iter()
        .find_map(|severity| line.strip_prefix(severity))
        .unwrap_or(line)
        .trim()
}

/// The line that lets the connection in, when it was `pg_hba.conf` that did not.
///
/// The server's messages differ by language and by what they say in the end, but name that file
/// and then, in quotes, the client's host, the role and the database (`ClientAuthentication`,
/// `auth.c`).
fn pg_hba_line(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("pg_hba.conf")?;
    let mut quoted = rest.split('"').skip(1).step_by(2);
    let (host, role, database) = (quoted.next()?, quoted.next()?, quoted.next()?);
    let (role, database) = (hba_name(role), hba_name(database));
    Some(match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => {
            format!("host  {database}  {role}  {address}/32  scram-sha-256")
        }
        Ok(IpAddr::V6(address)) => {
            format!("host  {database}  {role}  {address}/128  scram-sha-256")
        }
        Err(_) => format!("local  {database}  {role}  scram-sha-256"),
    })
}

/// A name as `pg_hba.conf` takes it. In quotes a keyword of that file is a plain name.
fn hba_name(name: &str) -> String {
    const KEYWORDS: [&str; 5] = ["all", "replication", "samegroup", "samerole", "sameuser"];
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.chars().all(is_plain) && !KEYWORDS.contains(&name) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn introduction() -> Introduction {
        Introduction {
            in_recovery: false,
            version: "18.6".into(),
            system_identifier: "1".into(),
            role: "replicator".into(),
            database: "postgres".into(),
            extension_schema: Some("public".into()),
            may_use_schema: true,
            may_use_extension: true,
            may_end_blockers: Some(true),
            may_use_core: Some(true),
            sees_all: false,
            position: Some(Lsn::new(100)),
            relay: None,
            next_xid: Xid::new(700).expect("a normal xid"),
            is_enabled: true,
            blocker_action: "report".into(),
            blocker_scope: "idle".into(),
            protected_roles: String::new(),
        }
    }

    #[test]
    fn the_function_that_flushes_is_preferred() {
        let writer = introduction().writer().expect("a writer");
        assert_eq!(writer.to_string(), "public.slot_self_heal_nudge()");
        let without = Introduction {
            extension_schema: None,
            ..introduction()
        };
        assert_eq!(without.writer(), Ok(Writer::Core));
        let refused = Introduction {
            may_use_extension: false,
            ..introduction()
        };
        assert_eq!(refused.writer(), Ok(Writer::Core));
    }

    #[test]
    fn the_right_to_end_blockers_takes_the_schemas_too() {
        let closed_schema = Introduction {
            may_use_schema: false,
            may_end_blockers: Some(false),
            ..introduction()
        };
        let problem = closed_schema.blocker_ender().expect_err("a problem");
        let hint = problem.hint.to_string();
        assert!(
            hint.starts_with(
                "GRANT USAGE ON SCHEMA public TO replicator; GRANT EXECUTE ON FUNCTION \
                 public.slot_self_heal_end_blocker(xid, interval) TO replicator; --"
            ),
            "{hint}"
        );
    }

    #[test]
    fn each_refusal_has_its_remedy() {
        let problem = |introduction: Introduction| introduction.writer().expect_err("a problem");
        let neither = problem(Introduction {
            may_use_extension: false,
            may_end_blockers: Some(true),
            may_use_core: Some(false),
            role: "It's".into(),
            ..introduction()
        });
        assert_eq!(neither.kind, Kind::NotPermitted);
        let hint = neither.hint.to_string();
        assert!(
            hint.starts_with(
                "GRANT EXECUTE ON FUNCTION public.slot_self_heal_nudge() TO \"It's\"; --"
            ),
            "{hint}"
        );
        let core = problem(Introduction {
            extension_schema: None,
            may_use_core: Some(false),
            ..introduction()
        });
        assert!(
            core.hint
                .to_string()
                .contains("pg_catalog.pg_log_standby_snapshot() TO replicator;")
        );
        let closed_schema = problem(Introduction {
            may_use_schema: false,
            may_use_core: Some(false),
            ..introduction()
        });
        let hint = closed_schema.hint.to_string();
        assert!(
            hint.starts_with("GRANT USAGE ON SCHEMA public TO replicator; GRANT EXECUTE"),
            "{hint}"
        );
        let old = problem(Introduction {
            extension_schema: None,
            may_use_core: None,
            version: "15.20".into(),
            ..introduction()
        });
        assert_eq!(old.kind, Kind::NotConfigured);
        assert!(old.message.contains("15.20"));
        let standby = problem(Introduction {
            in_recovery: true,
            extension_schema: None,
            ..introduction()
        });
        assert_eq!(standby.kind, Kind::IsStandby);
        let closed_standby = problem(Introduction {
            in_recovery: true,
            may_use_extension: false,
            ..introduction()
        });
        assert_eq!(closed_standby.kind, Kind::NotPermitted);
    }

    /// Whoever listens there may answer anything, before it knows who asks.
    #[test]
    fn what_an_upstream_says_runs_nothing() {
        let login = Login {
            role: None,
            database: "d".into(),
        };
        let message = "FATAL:  no pg_hba.conf entry for host \"10.0.0.2\", user \"r\nDROP TABLE \
                       customers;\", database \"d\"";
        let hint = Problem::unreachable(message, &login).hint.to_string();
        let statements: Vec<_> = hint
            .lines()
            .filter(|line| !line.starts_with("--"))
            .collect();
        assert_eq!(statements, ["SELECT pg_reload_conf(); -- on the upstream"]);
        let hostile = Introduction {
            role: "r; DROP TABLE customers; --".into(),
            extension_schema: Some("s; DROP TABLE customers; --".into()),
            may_use_schema: false,
            may_use_core: None,
            ..introduction()
        };
        let hint = hostile.writer().expect_err("a problem").hint.to_string();
        let (statements, _) = hint.split_once(" -- on the primary").expect("a comment");
        assert_eq!(
            statements,
            "GRANT USAGE ON SCHEMA \"s; DROP TABLE customers; --\" TO \"r; DROP TABLE customers; \
             --\"; GRANT EXECUTE ON FUNCTION \"s; DROP TABLE customers; --\".\
             slot_self_heal_nudge() TO \"r; DROP TABLE customers; --\";"
        );
    }

    #[test]
    fn an_upstream_that_is_switched_off_is_not_asked() {
        let off = || Introduction {
            is_enabled: false,
            ..introduction()
        };
        assert_eq!(off().writer(), Ok(Writer::Core));
        let off_without_core = Introduction {
            may_use_core: Some(false),
            ..off()
        };
        let off_standby = Introduction {
            in_recovery: true,
            ..off()
        };
        for introduction in [off_without_core, off_standby] {
            let problem = introduction.writer().expect_err("a problem");
            assert!(problem.message.contains("enabled is off"), "{problem:?}");
        }
    }

    #[test]
    fn requests_do_not_go_in_circles() {
        let mut names = vec![Hop::default().to_string()];
        while let Ok(hop) = Hop::after(&names[names.len() - 1]) {
            names.push(hop.to_string());
        }
        assert_eq!(names[..2], ["slot_self_heal", "slot_self_heal/1"]);
        assert_eq!(names.len(), 5);
        assert_eq!(
            Hop::after("psql").map(|hop| hop.to_string()),
            Ok("slot_self_heal/1".into())
        );
    }

    #[test]
    fn a_failure_on_the_way_is_told_once() {
        let writer = Writer::Extension {
            schema: "Slot Home".into(),
        };
        let once = Problem::not_passed_on("ERROR:  no primary\nDETAIL: x", &writer);
        let twice = Problem::not_passed_on(&format!("ERROR:  {}", once.message), &writer);
        assert_eq!(once, twice);
    }

    #[test]
    fn what_may_be_a_password_is_not_shown() {
        let problem = |name: &str| Problem::unresolved(Source::Ours, &[name.into()]).message;
        assert!(problem("db.example").ends_with(": db.example"));
        assert!(!problem("s3cret@db.example").contains("s3cret"));
    }

    #[test]
    fn a_refusal_by_pg_hba_names_the_line_to_add() {
        let login = Login {
            role: Some("replicator".into()),
            database: "My db".into(),
        };
        let refused = Problem::unreachable(
            "connection to server at \"10.0.0.1\", port 5432 failed: FATAL:  no pg_hba.conf entry \
             for host \"10.0.0.2\", user \"replicator\", database \"My db\", no encryption",
            &login,
        );
        let hint = refused.hint.to_string();
        assert!(
            hint.contains("\n-- host  \"My db\"  replicator  10.0.0.2/32  scram-sha-256\n"),
            "{hint}"
        );
        let local = pg_hba_line(
            "FATAL: pg_hba.conf rejects connection for host \"[local]\", user \"r\", database \"d\"",
        );
        assert_eq!(local.as_deref(), Some("local  d  r  scram-sha-256"));
        let message = "connection to server failed: Connection refused\nIs it up?";
        let away = Problem::unreachable(message, &login);
        assert!(
            away.message.ends_with("Connection refused"),
            "{}",
            away.message
        );
        let hint = away.hint.to_string();
        assert!(!hint.contains("pg_hba.conf"));
        assert!(hint.contains("as role replicator, to database My db"));
    }
}
