//! What ALTER SYSTEM has written: `postgresql.auto.conf` in the data directory.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use pgrx::pg_sys;

use crate::core::hint::Written;
use crate::core::time::Timestamp;

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
        let Some((text, _)) = read() else {
            return false;
        };
        text.lines().any(|line| value(line, name) == Some(expected))
    }
}

/// What is between the quotes in `name = 'value'` (`write_auto_conf_file`, `guc.c`). A quote or a
/// backslash in it is doubled, of which no value has any that is asked for here.
fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = line.strip_prefix(name)?.strip_prefix(" = '")?;
    rest.strip_suffix('\'')
}

fn written_since_reload() -> Option<String> {
    let (text, written) = read()?;
    // SAFETY: when this process last read its configuration files (`guc.c`).
    let loaded = Timestamp::new(unsafe { pg_sys::PgReloadTime });
    (written > loaded).then_some(text)
}

/// The file's text, and when it was written: ALTER SYSTEM makes a new one each time.
fn read() -> Option<(String, Timestamp)> {
    // SAFETY: set when the server starts, and constant.
    let directory = unsafe { CStr::from_ptr(pg_sys::DataDir) }.to_str().ok()?;
    let file = File::open(PathBuf::from(directory).join("postgresql.auto.conf")).ok()?;
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
