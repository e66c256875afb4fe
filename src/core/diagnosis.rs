//! What a creation waits for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::episode::Episode;
use super::observation::{
    ClientProcess, Creator, CreatorIdentity, CreatorWait, Observation, Transaction,
};
use super::replay::{Obstacle, Replay};
use super::xid::Xid;

/// How long an undisturbed creation may take before we say that it waits for something: it loads
/// the output plugin and writes the slot to disk.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a transaction must have run to be named although the builder does not wait for it
/// yet: it would if it still ran at the next phase. Shorter ones come and go on any busy server.
const LASTING: Duration = Duration::from_secs(1);

/// The state of a slot, as `slot_self_heal_status.state` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Ready,
    Starting,
    WaitingForTransactions,
    WaitingForRecord,
    /// On a standby: what it waits for can't arrive, or not yet.
    WaitingForReplay,
    /// On a standby: replay waits for the creator itself.
    BlockingReplay,
    /// Its client is gone. What it waits for besides is remembered all the same.
    Abandoned,
    NotSyncReady,
    Lost,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::WaitingForTransactions => "waiting_for_transactions",
            Self::WaitingForRecord => "waiting_for_record",
            Self::WaitingForReplay => "waiting_for_replay",
            Self::BlockingReplay => "blocking_replay",
            Self::Abandoned => "abandoned",
            Self::NotSyncReady => "not_sync_ready",
            Self::Lost => "lost",
        }
    }
}

/// What is found of one creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    pub state: State,
    /// The transactions that must end before the slot can be usable, oldest first.
    pub blockers: Vec<Xid>,
    /// What keeps replay from bringing what is waited for.
    pub obstacle: Option<Obstacle>,
}

impl Diagnosis {
    fn of_state(state: State) -> Self {
        Self {
            state,
            blockers: Vec::new(),
            obstacle: None,
        }
    }
}

/// Tells what `creator` waits for, given what is remembered of the creation.
pub fn diagnose(creator: &Creator, episode: &Episode, observation: &Observation) -> Diagnosis {
    match &observation.replay {
        Some(replay) => on_standby(creator, episode, observation, replay),
        None => on_primary(creator, episode, observation),
    }
}

fn on_primary(creator: &Creator, episode: &Episode, observation: &Observation) -> Diagnosis {
    match creator.wait {
        CreatorWait::Transaction => waiting_for_transactions(episode, observation),
        // It still polls for the end of one of the old primary's transactions, as standbys do.
        CreatorWait::Working if episode.was_promoted(observation.at, PATIENCE) => {
            Diagnosis::of_state(State::WaitingForTransactions)
        }
        // It reads the WAL that was written while it waited, or has not come to waiting for what
        // only others can bring.
        CreatorWait::Working | CreatorWait::Barrier => Diagnosis::of_state(State::Starting),
        CreatorWait::Wal | CreatorWait::Unknown => waiting_for_record(episode, observation),
    }
}

/// No wait event tells here what the creator waits for, so it is told from what replay does and
/// from what a record needs to be of use.
fn on_standby(
    creator: &Creator,
    episode: &Episode,
    observation: &Observation,
    replay: &Replay,
) -> Diagnosis {
    let in_flight = episode.schedule.and_then(|schedule| schedule.in_flight());
    let is_upstream_cut_off = || {
        episode
            .schedule
            .is_some_and(|schedule| schedule.is_cut_off())
    };
    let obstacle = match replay.obstacle(in_flight) {
        Some(Obstacle::NotReceived) if is_upstream_cut_off() => Some(Obstacle::UpstreamCutOff),
        obstacle => obstacle,
    };
    let waits_for_transactions = episode
        .schedule
        .is_some_and(|schedule| schedule.waits_for_transactions(observation.running));
    let blocks_replay = replay.waits_for(creator.identity.pid);
    match obstacle {
        Some(obstacle) if blocks_replay => Diagnosis {
            obstacle: Some(obstacle),
            ..Diagnosis::of_state(State::BlockingReplay)
        },
        Some(obstacle) if obstacle.stops_all() => Diagnosis {
            obstacle: Some(obstacle),
            ..Diagnosis::of_state(State::WaitingForReplay)
        },
        _ if waits_for_transactions => waiting_for_transactions(episode, observation),
        Some(obstacle)
            if !obstacle.is_passing() || episode.awaits_replay(observation, PATIENCE) =>
        {
            Diagnosis {
                obstacle: Some(obstacle),
                ..Diagnosis::of_state(State::WaitingForReplay)
            }
        }
        // Unlike a primary's, it can't have written one itself.
        Some(_) | None if episode.schedule.is_some() => {
            Diagnosis::of_state(State::WaitingForRecord)
        }
        Some(_) | None => Diagnosis::of_state(State::Starting),
    }
}

fn waiting_for_transactions(episode: &Episode, observation: &Observation) -> Diagnosis {
    Diagnosis {
        blockers: blockers(episode, observation),
        ..Diagnosis::of_state(State::WaitingForTransactions)
    }
}

fn waiting_for_record(episode: &Episode, observation: &Observation) -> Diagnosis {
    let waits = episode.has_waited() || observation.at.since(episode.started) >= PATIENCE;
    Diagnosis::of_state(if waits {
        State::WaitingForRecord
    } else {
        State::Starting
    })
}

fn blockers(episode: &Episode, observation: &Observation) -> Vec<Xid> {
    let lasting = |transaction: &Transaction| {
        transaction
            .started
            .is_some_and(|started| observation.at.since(started) >= LASTING)
    };
    observation
        .transactions
        .iter()
        .filter(|transaction| {
            let schedule = episode.schedule.as_ref();
            schedule.is_some_and(|s| s.must_end(transaction.xid, lasting(transaction)))
        })
        .map(|transaction| transaction.xid)
        .collect()
}

/// How a blocker is related to whoever asked for the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinship {
    None,
    /// The same process has opened both sessions.
    SameClient,
    /// The same application of the same role at the same address. It may wait for the slot while it
    /// holds its transaction open, and it may be another session of the same program.
    SameApplication,
    /// The session waits for the answer of the very process that creates the slot, as CREATE
    /// SUBSCRIPTION does when it names its own cluster as the publisher, and whoever creates a slot
    /// through dblink or postgres_fdw: neither can go on.
    WaitsForTheSlot,
}

/// A session that waits for a walsender may as well wait for one of another cluster. It is taken
/// for this creation's when it is the client at the other end of the creator's connection, or when
/// it names it: the walsender's application name is the subscription's (`CreateSubscription`,
/// `subscriptioncmds.c`) and stands in the session's command.
pub fn kinship(creator: &CreatorIdentity, blocker: &Transaction) -> Kinship {
    let names_it = || {
        let query = blocker.query.as_deref();
        let application = creator.application_name.as_str();
        query.is_some_and(|query| contains_word(query, application))
    };
    let (is_client, is_same_client) = match (creator.client_process, blocker.client_process) {
        // A pid on another server tells nothing here.
        (_, ClientProcess::OfAnotherServer) => (false, false),
        (ClientProcess::Known(client), its_own) => (
            blocker.pid() == Some(client),
            its_own == ClientProcess::Known(client),
        ),
        (
            ClientProcess::OfAnotherServer | ClientProcess::NotLookedUp | ClientProcess::Unknown,
            _,
        ) => (false, false),
    };
    if is_client || blocker.waits_for_walsender && names_it() {
        Kinship::WaitsForTheSlot
    } else if is_same_client {
        Kinship::SameClient
    } else if is_same_application(creator, blocker) {
        Kinship::SameApplication
    } else {
        Kinship::None
    }
}

/// Programs name their sessions by what these do, after their own name: `Debezium General`,
/// `Debezium Streaming`. A driver's default name says nothing of whose session it is, but the role
/// does.
fn is_same_application(creator: &CreatorIdentity, blocker: &Transaction) -> bool {
    let application = blocker.application_name.as_deref().unwrap_or_default();
    let word = first_word(application);
    let same_word = !word.is_empty() && word == first_word(&creator.application_name);
    // A name may begin with something else than a word: `[cdc] sync`.
    let same_name = !application.is_empty() && application == creator.application_name;
    (same_word || same_name)
        && creator.usename.is_some()
        && creator.usename == blocker.usename
        && may_be_same_address(creator, blocker)
}

/// Another server sees a client of its own host at another address than this one does, or at none.
fn may_be_same_address(creator: &CreatorIdentity, blocker: &Transaction) -> bool {
    let is_local = |address: &Option<String>| {
        let address = address.as_deref();
        address.is_none_or(|address| address.starts_with("127.") || address == "::1")
    };
    let is_elsewhere = blocker.client_process == ClientProcess::OfAnotherServer;
    creator.client_addr == blocker.client_addr
        || is_elsewhere && (is_local(&creator.client_addr) || is_local(&blocker.client_addr))
}

fn first_word(name: &str) -> &str {
    let end = name.find(|character| !is_of_word(character));
    name.get(..end.unwrap_or(name.len())).unwrap_or_default()
}

fn is_of_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Whether `word` stands in `text` by itself, in whatever case.
fn contains_word(text: &str, word: &str) -> bool {
    let (text, word) = (text.to_lowercase(), word.to_lowercase());
    if word.is_empty() {
        return false;
    }
    text.match_indices(&word).any(|(start, found)| {
        let before = text.get(..start).and_then(|part| part.chars().next_back());
        let after = text
            .get(start + found.len()..)
            .and_then(|part| part.chars().next());
        !before.is_some_and(is_of_word) && !after.is_some_and(is_of_word)
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::pause::Pause;
    use super::super::upstream::Record;
    use super::super::watch::Watch;
    use super::super::xid::Lsn;
    use super::*;

    /// A session of the creator's role and address, by its application's name.
    fn named(application: &str) -> Transaction {
        Transaction {
            usename: Some("cdc".into()),
            application_name: Some(application.into()),
            client_addr: Some("10.0.0.5".into()),
            ..session(700, 1)
        }
    }

    #[test]
    fn peers_share_role_address_and_the_name_of_their_program() {
        let creator = creator().identity;
        let same = named("sub");
        assert_eq!(kinship(&creator, &same), Kinship::SameApplication);
        let elsewhere = Transaction {
            client_addr: None,
            ..same.clone()
        };
        assert_eq!(kinship(&creator, &elsewhere), Kinship::None);
        let of_another_role = Transaction {
            usename: Some("alice".into()),
            ..same.clone()
        };
        assert_eq!(kinship(&creator, &of_another_role), Kinship::None);
        assert_eq!(kinship(&creator, &session(700, 1)), Kinship::None);

        let calls_itself = |name: &str, other: &str| {
            let creator = CreatorIdentity {
                application_name: name.into(),
                ..creator.clone()
            };
            kinship(&creator, &named(other)) == Kinship::SameApplication
        };
        assert!(calls_itself("Debezium Streaming", "Debezium General"));
        assert!(calls_itself("zero-replicator", "zero-cvr"));
        assert!(calls_itself("pgcopydb[7] follow", "pgcopydb[8] snapshot"));
        assert!(!calls_itself("sub", "subscriber"));
        assert!(!calls_itself("sub_1", "sub_2"));
        assert!(!calls_itself("", ""));
        assert!(!calls_itself("[x]", "[y]"));
        assert!(calls_itself("[x]", "[x]"));
    }

    #[test]
    fn another_server_sees_clients_of_its_host_at_another_address() {
        let seen = |here: Option<&str>, there: Option<&str>, client_process| {
            let creator = CreatorIdentity {
                client_addr: here.map(str::to_owned),
                ..creator().identity
            };
            let blocker = Transaction {
                client_addr: there.map(str::to_owned),
                client_process,
                ..named("sub")
            };
            kinship(&creator, &blocker) == Kinship::SameApplication
        };
        let elsewhere = ClientProcess::OfAnotherServer;
        assert!(seen(None, Some("10.0.0.5"), elsewhere));
        assert!(seen(Some("10.0.0.5"), Some("::1"), elsewhere));
        assert!(seen(Some("127.0.0.1"), Some("10.0.0.5"), elsewhere));
        assert!(!seen(Some("10.0.0.5"), Some("10.0.0.6"), elsewhere));
        assert!(!seen(None, Some("10.0.0.5"), ClientProcess::Unknown));
    }

    #[test]
    fn sessions_of_one_process_are_peers() {
        let creator = CreatorIdentity {
            client_process: ClientProcess::Known(pid(4000)),
            ..creator().identity
        };
        let session_of = |holder, client_process| Transaction {
            client_process,
            ..session(700, holder)
        };
        let of = |transaction| kinship(&creator, &transaction);
        let client = |number| ClientProcess::Known(pid(number));
        assert_eq!(of(session_of(1, client(4000))), Kinship::SameClient);
        assert_eq!(of(session_of(1, client(4001))), Kinship::None);
        assert_eq!(of(session_of(1, ClientProcess::Unknown)), Kinship::None);
        // It has sent the command through dblink.
        let through_dblink = session_of(4000, ClientProcess::Unknown);
        assert_eq!(of(through_dblink), Kinship::WaitsForTheSlot);
        let elsewhere = session_of(4000, ClientProcess::OfAnotherServer);
        assert_eq!(of(elsewhere), Kinship::None);
        let unknown = CreatorIdentity {
            client_process: ClientProcess::Unknown,
            ..creator.clone()
        };
        let other = session_of(1, ClientProcess::Unknown);
        assert_eq!(kinship(&unknown, &other), Kinship::None);
    }

    #[test]
    fn waiting_for_another_clusters_walsender_is_no_kinship() {
        let subscriber = |query: &str| Transaction {
            waits_for_walsender: true,
            query: Some(query.into()),
            ..session(700, 1)
        };
        let creator = creator().identity;
        let ours = subscriber("create subscription SUB connection 'port=5432' publication p");
        assert_eq!(kinship(&creator, &ours), Kinship::WaitsForTheSlot);
        let other = subscriber("create subscription elsewhere connection '' publication p");
        assert_eq!(kinship(&creator, &other), Kinship::None);
    }

    /// The state of a creation on a standby on whose primary transactions since 990 run, and that
    /// has waited for some seconds.
    fn state(oldest: u32, replay: impl Fn(&mut Replay)) -> State {
        let mut watch = Watch::default();
        for seconds in 0..5 {
            let slots = vec![building("x", CreatorWait::Working)];
            let mut observation = standby(seconds * 1000, slots, oldest);
            observation.replay.as_mut().into_iter().for_each(&replay);
            watch.update(&observation);
            if seconds == 0 && oldest == 1000 {
                let record = Record {
                    lsn: Lsn::new(1 << 26),
                    running: Some(observation.running),
                };
                watch.requested(&[], record, observation.at);
            }
        }
        let episode = watch.episodes.into_values().next();
        episode.expect("an episode").state
    }

    #[test]
    fn on_a_standby_it_waits_for_what_comes_first() {
        let creator = || in_the_way(creator().identity.pid.get());
        assert_eq!(state(990, |_| {}), State::WaitingForTransactions);
        let delays = |replay: &mut Replay| replay.apply_delay = Duration::from_secs(3600);
        assert_eq!(state(990, delays), State::WaitingForTransactions);
        assert_eq!(state(1000, delays), State::WaitingForReplay);
        let pauses = |replay: &mut Replay| replay.pause = Some(Pause::Asked);
        assert_eq!(state(990, pauses), State::WaitingForReplay);
        let conflicts = |replay: &mut Replay| replay.waits_for = vec![creator()];
        assert_eq!(state(990, conflicts), State::BlockingReplay);
        let may_conflict = |replay: &mut Replay| {
            replay.waits_for = vec![creator()];
            replay.is_certain = false;
        };
        assert_eq!(state(990, may_conflict), State::WaitingForReplay);
        // On its way for four seconds, and not here.
        assert_eq!(state(1000, |_| {}), State::WaitingForReplay);
        let arrived = |replay: &mut Replay| replay.replayed = Lsn::new(1 << 26);
        assert_eq!(state(1000, arrived), State::WaitingForRecord);
    }
}
