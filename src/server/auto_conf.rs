//! What ALTER SYSTEM has written: `postgresql.auto.conf` in the data directory.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use pgrx::pg_sys;

use crate::core::hint::{NoUse, Written};
use crate::core::time::Timestamp;

const NAME: &str = "postgresql.auto.conf";

/// From 1970 to 2000, in microseconds.
const EPOCH: i64 = 946_684_800_000_000;
/// More is not read: ALTER SYSTEM writes a line for each setting.
const LIMIT: u64 = 1 << 20;

/// The file as it is now. It is read when it is asked, which is only where a hint is about a
/// setting.
pub struct AutoConf;

impl Written for AutoConf {
    fn awaits_reload(&self, name: &str) -> bool {
        let Some(text) = written_since_reload() else {
            return false;
        };
        text.lines().any(|line| value(line, name).is_some())
    }

    fn has_value(&self, name: &str, expected: &str) -> bool {
        let Some((text, _)) = read(NAME) else {
            return false;
        };
        text.lines().any(|line| value(line, name) == Some(expected))
    }

    fn is_of_no_use_for(&self, name: &str) -> Option<NoUse> {
        if super::setting_is(c"allow_alter_system", c"off") {
            return Some(NoUse::NotAllowed);
        }
        let (command_line, _) = read("postmaster.opts")?;
        sets(&command_line, name).then_some(NoUse::OnCommandLine)
    }
}

/// What is between the quotes in `name = 'value'` (`write_auto_conf_file`, `guc.c`). A quote or a
/// backslash in it is doubled, of which no value has any that is asked for here.
fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = line.strip_prefix(name)?.strip_prefix(" = '")?;
    rest.strip_suffix('\'')
}

fn written_since_reload() -> Option<String> {
    let (text, written) = read(NAME)?;
    // SAFETY: when this process last read its configuration files (`guc.c`).
    let loaded = Timestamp::new(unsafe { pg_sys::PgReloadTime });
    (written > loaded).then_some(text)
}

/// Whether a server's command line has this setting, as `-c name=value` or `--name=value`, whose name
/// may have `-` for `_` (`ParseLongOption`, `guc.c`).
fn sets(command_line: &str, name: &str) -> bool {
    // Each argument in quotes (`CreateOptsFile`, `postmaster.c`).
    command_line.split('"').any(|argument| {
        let argument = argument.trim_start_matches("--").trim_start_matches("-c");
        let set = argument
            .split_once('=')
            .map(|(set, _)| set.replace('-', "_"));
        set.is_some_and(|set| set.trim().eq_ignore_ascii_case(name))
    })
}

/// The text of a file in the data directory, and when it was written: ALTER SYSTEM makes a new one
/// each time.
fn read(name: &str) -> Option<(String, Timestamp)> {
    // SAFETY: set when the server starts, and constant.
    let directory = unsafe { CStr::from_ptr(pg_sys::DataDir) }.to_str().ok()?;
    let file = File::open(PathBuf::from(directory).join(name)).ok()?;
    let written = timestamp(file.metadata().ok()?.modified().ok()?)?;
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes).ok()?;
    Some((String::from_utf8_lossy(&bytes).into_owned(), written))
}

fn timestamp(time: SystemTime) -> Option<Timestamp> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    let microseconds = i64::try_from(since.as_micros()).ok()?;
    Some(Timestamp::new(microseconds - EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_a_command_line_are_found() {
        let command_line = r#"/usr/lib/postgresql/18/bin/postgres "-D" "/data" "-c" "wal_level=replica" "--max-connections=9" "-cwork_mem=1MB""#;
        for name in ["wal_level", "max_connections", "work_mem"] {
            assert!(sets(command_line, name), "{name}");
        }
        for name in ["level", "wal_level_x", "data"] {
            assert!(!sets(command_line, name), "{name}");
        }
    }

    #[test]
    fn a_line_is_read_as_it_is_written() {
        assert_eq!(value("wal_level = 'logical'", "wal_level"), Some("logical"));
        assert_eq!(value("wal_level_x = 'logical'", "wal_level"), None);
        assert_eq!(value("# wal_level = 'logical'", "wal_level"), None);
    }

    #[test]
    fn times_are_the_servers() {
        let at = UNIX_EPOCH + std::time::Duration::from_secs(946_684_801);
        assert_eq!(timestamp(at), Some(Timestamp::new(1_000_000)));
    }
}
